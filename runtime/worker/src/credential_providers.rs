//! Programs that are asked for registries' credentials, as the kubelet asks them (`CredentialProviderConfig`,
//! `credentialprovider.kubelet.k8s.io/v1`): one question on standard input, one answer on standard output.

use carob_image::{Credential, covers};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
/// How long a program may take (the kubelet's).
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer longer than this is none.
const ANSWER_MAX: u64 = 1024 * 1024;

/// The file that names the programs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CredentialProviderConfig {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

/// One program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Provider {
    /// Its file's name in the directory of programs.
    name: String,
    /// The images that it is asked for: hosts with globs, ports, beginnings of paths.
    match_images: Vec<String>,
    /// How long an answer holds that doesn't say so itself.
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'static str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: String,
    kind: String,
    cache_key_type: KeyType,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Auth>,
}

/// For what else an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum KeyType {
    Image,
    Registry,
    Global,
}

#[derive(Debug, Deserialize)]
struct Auth {
    username: String,
    password: String,
}

fn duration(text: &str) -> Option<Duration> {
    Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()
}

/// The programs, and what they have answered.
#[derive(Debug, Default)]
pub struct CredentialProviders {
    programs: PathBuf,
    providers: Vec<Provider>,
    answers: Mutex<HashMap<Asked, Kept>>,
}

/// A program's name, and what its answer is for.
type Asked = (String, String);
/// Until when an answer holds.
type Kept = (Instant, Vec<Credential>);

impl CredentialProviders {
    /// Checks the file; `programs` is the directory that they are in.
    pub fn new(config: CredentialProviderConfig, programs: &Path) -> Result<Self, String> {
        if (config.api_version.as_str(), config.kind.as_str())
            != ("kubelet.config.k8s.io/v1", "CredentialProviderConfig")
        {
            return Err("apiVersion and kind must be kubelet.config.k8s.io/v1 and CredentialProviderConfig".to_owned());
        }
        for provider in &config.providers {
            let Provider { name, api_version, default_cache_duration, match_images, .. } = provider;
            let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', ' ']);
            if !plain {
                return Err(format!("provider name {name:?} is not a file's name"));
            }
            if api_version != API_VERSION {
                return Err(format!("provider {name}: apiVersion must be {API_VERSION}"));
            }
            if duration(default_cache_duration).is_none() {
                return Err(format!("provider {name}: {default_cache_duration:?} is no duration"));
            }
            if match_images.is_empty() {
                return Err(format!("provider {name}: matchImages is empty"));
            }
            if !programs.join(name).is_file() {
                return Err(format!("provider {name}: {} is not there", programs.join(name).display()));
            }
        }
        Ok(Self { programs: programs.to_owned(), providers: config.providers, answers: Mutex::default() })
    }

    /// What the programs know for an image. One that fails is passed over.
    pub(crate) async fn credentials(&self, image: &str) -> Vec<Credential> {
        let mut all = Vec::new();
        for provider in &self.providers {
            if !provider.match_images.iter().any(|pattern| covers(pattern, image)) {
                continue;
            }
            if let Some(known) = self.known(&provider.name, image) {
                all.extend(known);
                continue;
            }
            match tokio::time::timeout(PATIENCE, self.ask(provider, image)).await {
                Ok(Ok(found)) => all.extend(found),
                Ok(Err(error)) => tracing::warn!(provider = provider.name, image, error, "no credentials"),
                Err(_) => tracing::warn!(provider = provider.name, image, "no credentials: it takes too long"),
            }
        }
        all
    }

    /// An answer is kept by the image, by its registry, or for all.
    fn keys(image: &str) -> [(KeyType, String); 3] {
        let host = image.split('/').next().unwrap_or_default();
        [(KeyType::Image, image.to_owned()), (KeyType::Registry, host.to_owned()), (KeyType::Global, String::new())]
    }

    fn known(&self, provider: &str, image: &str) -> Option<Vec<Credential>> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        answers.retain(|_, (until, _)| *until > now);
        let mut keys = Self::keys(image).into_iter();
        keys.find_map(|(_, key)| answers.get(&(provider.to_owned(), key)).map(|(_, known)| known.clone()))
    }

    async fn ask(&self, provider: &Provider, image: &str) -> Result<Vec<Credential>, String> {
        let question = Request { api_version: API_VERSION, kind: "CredentialProviderRequest", image };
        let question = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
        let mut child = tokio::process::Command::new(self.programs.join(&provider.name))
            .args(&provider.args)
            .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A program that doesn't read its question may answer all the same.
                let _ = stdin.write_all(&question).await;
            }
        };
        let read = async move {
            let mut answer = Vec::new();
            match stdout {
                Some(stdout) => stdout.take(ANSWER_MAX).read_to_end(&mut answer).await.map(|_| answer),
                None => Ok(answer),
            }
        };
        let ((), answer) = tokio::join!(write, read);
        let answer = answer.map_err(|error| error.to_string())?;
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("it ended with {status}"));
        }
        // What is wrong with an answer is told without citing it.
        let response: Response = serde_json::from_slice(&answer)
            .map_err(|error| format!("its answer is not understood, at column {}", error.column()))?;
        if (response.api_version.as_str(), response.kind.as_str()) != (API_VERSION, "CredentialProviderResponse") {
            return Err("its answer is of another version or kind".to_owned());
        }
        let found: Vec<Credential> = response
            .auth
            .into_iter()
            .map(|(registry, Auth { username, password })| Credential {
                registry,
                username,
                password,
                identity_token: None,
                shared: true,
            })
            .collect();
        let lasting = response.cache_duration.as_deref().unwrap_or(&provider.default_cache_duration);
        let lasting = duration(lasting).unwrap_or_default();
        if !lasting.is_zero() {
            let key = Self::keys(image).into_iter().find(|(kind, _)| *kind == response.cache_key_type);
            let key = (provider.name.clone(), key.map(|(_, key)| key).unwrap_or_default());
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.insert(key, (Instant::now() + lasting, found.clone()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn config(name: &str) -> CredentialProviderConfig {
        serde_json::from_value(json!({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
            "providers": [{"name": name, "apiVersion": API_VERSION, "defaultCacheDuration": "10m",
                "matchImages": ["*.example.com"], "args": ["--x"], "env": [{"name": "WHO", "value": "me"}]}]}))
        .unwrap()
    }

    /// Counts how often it was asked, and answers with its argument, its variable and its question.
    fn program(folder: &Path) {
        let script = format!(
            r#"#!/bin/sh
read question; echo "$question" >> {}/questions
printf '{{"apiVersion":"{API_VERSION}","kind":"CredentialProviderResponse","cacheKeyType":"Registry","auth":{{"*.example.com":{{"username":"%s","password":"%s"}}}}}}' "$WHO" "$1"
"#,
            folder.display()
        );
        std::fs::write(folder.join("program"), script).unwrap();
        std::fs::set_permissions(folder.join("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn a_program_is_asked_for_its_images_and_its_answer_kept_for_the_registry() {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path());
        let providers = CredentialProviders::new(config("program"), folder.path()).unwrap();
        let first = providers.credentials("a.example.com/x:1").await;
        assert_eq!((first[0].username.as_str(), first[0].password.as_str()), ("me", "--x"));
        assert_eq!(providers.credentials("a.example.com/y").await, first);
        assert_eq!(providers.credentials("b.example.com/y").await, first);
        assert!(providers.credentials("example.org/x").await.is_empty());
        let asked = std::fs::read_to_string(folder.path().join("questions")).unwrap();
        let images: Vec<serde_json::Value> = asked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(images[0]["kind"], "CredentialProviderRequest");
        let images: Vec<&str> = images.iter().filter_map(|question| question["image"].as_str()).collect();
        assert_eq!(images, ["a.example.com/x:1", "b.example.com/y"]);
    }

    #[tokio::test]
    async fn a_program_that_fails_is_passed_over_and_a_wrong_file_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("program"), "#!/bin/sh\nexit 3\n").unwrap();
        std::fs::set_permissions(folder.path().join("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let providers = CredentialProviders::new(config("program"), folder.path()).unwrap();
        assert!(providers.credentials("a.example.com/x").await.is_empty());
        assert!(CredentialProviders::new(config("../program"), folder.path()).unwrap_err().contains("file's name"));
        assert!(CredentialProviders::new(config("other"), folder.path()).unwrap_err().contains("is not there"));
    }
}
