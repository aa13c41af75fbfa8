//! What can go wrong with an image, and the reason that Kubernetes shows for it on a waiting container.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A failure of this crate. Display says what failed; [`Error::describe`] adds the chain of causes.
///
/// Errors are shared between everybody who waits for the same pull, so they can be cloned.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The reference isn't one. The text is kubelet's.
    #[error("Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {problem}")]
    InvalidName {
        /// The reference as it was given.
        image: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The image could not be pulled; the source says why.
    #[error("failed to pull and unpack image \"{reference}\"")]
    Pull {
        /// The normalised reference.
        reference: String,
        /// The cause.
        #[source]
        source: Box<Error>,
    },
    /// The registry has no such manifest or blob.
    #[error("{what}: not found")]
    NotFound {
        /// A reference or a digest.
        what: String,
    },
    /// The registry refused our credentials, or asked for some.
    #[error("pull access denied for {repository}, repository does not exist or may require authorization: {problem}")]
    Unauthorized {
        /// Registry host and repository.
        repository: String,
        /// What the registry said.
        problem: String,
    },
    /// The registry cannot be reached or doesn't speak the protocol.
    #[error("registry {host} is unavailable: {problem}")]
    Unavailable {
        /// The registry's host and port.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The registry answered, but not as the distribution specification says.
    #[error("unexpected answer from registry {host}: {problem}")]
    Protocol {
        /// The registry's host and port.
        host: String,
        /// What it answered.
        problem: String,
    },
    /// Bytes don't have the digest or size that was promised for them.
    #[error("{what} is corrupt: {problem}")]
    Corrupt {
        /// The digest or the file that was being read.
        what: String,
        /// How it differs.
        problem: String,
    },
    /// A manifest, index, configuration or archive that isn't what it should be.
    #[error("{what} is malformed: {problem}")]
    Malformed {
        /// The digest or the file that was being read.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An archive tries to reach outside of its layer or to confuse its reader.
    #[error("layer entry {entry:?} is refused: {problem}")]
    Hostile {
        /// The entry's name in the archive.
        entry: String,
        /// The rule that it breaks.
        problem: String,
    },
    /// More bytes, entries or compression than is allowed.
    #[error("{what} is too large: {problem}")]
    TooLarge {
        /// The digest or the file that was being read.
        what: String,
        /// The limit that was passed.
        problem: String,
    },
    /// No image for this machine's architecture is in the index.
    #[error("no image for {platform} in {what}")]
    NoPlatform {
        /// As `linux/amd64`.
        platform: String,
        /// The index's digest.
        what: String,
    },
    /// The image names a user or group that its own files don't have.
    #[error("{problem}")]
    User {
        /// As `unable to find user nginx: no matching entries in passwd file`.
        problem: String,
    },
    /// A docker configuration that holds no credentials in a form we read.
    #[error("pull secret is malformed: {problem}")]
    Secret {
        /// What is wrong with it.
        problem: String,
    },
    /// The machine's disk or kernel refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// As a verb: `open`, `rename`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// Whoever asked for it went away.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The reason for a container's `state.waiting.reason`, from kubelet's image errors.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::Unavailable { .. } => "RegistryUnavailable",
            Self::Pull { source, .. } => source.reason(),
            Self::User { .. } => "CreateContainerConfigError",
            _ => "ErrImagePull",
        }
    }

    /// This error and its causes in one line, joined by `: `, as Go programs print them.
    pub fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// The message of the pod's `Failed` event: kubelet's sentence for `image` as the pod spec names it.
    pub fn event(&self, image: &str) -> String {
        match self {
            Self::InvalidName { .. } => self.to_string(),
            _ => format!("Failed to pull image \"{image}\": {}", self.describe()),
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source: Arc::new(source) }
    }

    pub(crate) fn io_errno(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let make = Self::io(action, path);
        move |errno| make(errno.into())
    }
}
