//! Descriptors of pipes and terminals as asynchronous streams.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// A pipe's end or a terminal's master, read and written without blocking the runtime.
#[derive(Debug)]
pub(crate) struct FdStream {
    fd: AsyncFd<OwnedFd>,
}

impl FdStream {
    /// Takes the descriptor and makes it non-blocking.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe for sources that may change their descriptor; OwnedFd cannot"
    )]
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// Reads what is there; 0 at the end. A terminal whose other side has closed ends too (the kernel says EIO).
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), buffer).map_err(io::Error::from)) {
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of it.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// The descriptor.
    pub fn get(&self) -> &OwnedFd {
        self.fd.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_through_a_pipe_and_its_end_is_seen() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (read, write) = (FdStream::new(read).unwrap(), FdStream::new(write).unwrap());
        // More than a pipe holds, so that writing has to wait for the reader.
        let sent = vec![7_u8; 200_000];
        let expected = sent.len();
        let writer = tokio::spawn(async move { write.write_all(&sent).await });
        let (mut total, mut buffer) = (0, [0; 4096]);
        loop {
            match read.read(&mut buffer).await.unwrap() {
                0 => break,
                n => total += n,
            }
        }
        writer.await.unwrap().unwrap();
        assert_eq!(total, expected);
    }
}
