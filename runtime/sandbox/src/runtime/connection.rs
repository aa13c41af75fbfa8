//! One connection to the spawner: requests with numbers, answers in any order, exits in between.

use crate::protocol::{self, Answer, Ask, Failure, Request, Tell};
use crate::{Error, Exit, wire};
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

type Response = Result<(Answer, Vec<OwnedFd>), Failure>;

/// The connection.
#[derive(Debug)]
pub struct Connection {
    next: AtomicU64,
    outgoing: mpsc::UnboundedSender<(Request, Vec<OwnedFd>)>,
    waiting: Arc<Mutex<Waiting>>,
    spawner: i32,
}

/// Who waits for what. `None` when the connection is lost: nobody will be answered any more.
#[derive(Debug, Default)]
struct Waiting {
    lost: bool,
    answers: HashMap<u64, oneshot::Sender<Response>>,
    exits: HashMap<u64, oneshot::Sender<i32>>,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // A panic while it was held leaves whole entries: inserting and removing are the only things done.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connected socket on which both sides have greeted.
#[derive(Debug)]
pub struct Greeted {
    /// Non-blocking.
    pub socket: OwnedFd,
    /// Process id of the spawner.
    pub spawner: i32,
}

impl Connection {
    /// Takes over a connected socket; two tasks of the current runtime serve it.
    #[expect(unsafe_code, reason = "AsyncFd trusts its descriptor")]
    pub fn open(greeted: Greeted) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Exit>), Error> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: an owned descriptor stays open and the same for as long as its owner, which moves into the AsyncFd.
        let socket = unsafe { AsyncFd::register_with_interest(greeted.socket, interest) };
        let socket = Arc::new(socket.map_err(|error| Error::SpawnerStart(error.to_string()))?);
        let (outgoing, requests) = mpsc::unbounded_channel();
        let (exit_sender, exits) = mpsc::unbounded_channel();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        tokio::spawn(write(Arc::clone(&socket), requests));
        tokio::spawn(read(socket, Arc::clone(&waiting), exit_sender));
        // Answers to requests of an earlier gateway may still come: numbers must not meet.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let first = u64::try_from(nanos & u128::from(u64::MAX >> 1)).unwrap_or(1);
        let connection = Self { next: AtomicU64::new(first), outgoing, waiting, spawner: greeted.spawner };
        Ok((Arc::new(connection), exits))
    }

    /// Process id of the spawner.
    pub fn spawner_pid(&self) -> i32 {
        self.spawner
    }

    /// Says something that has no answer.
    pub fn say(&self, ask: Ask) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // A lost connection shows at the next question.
        let _ = self.outgoing.send((Request { id, ask }, Vec::new()));
    }

    /// Asks and waits for the answer.
    pub async fn ask(&self, ask: Ask, fds: Vec<OwnedFd>) -> Result<(Answer, Vec<OwnedFd>), Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.ask_numbered(id, ask, fds).await
    }

    /// Asks for an exec: also gives the receiver of the process's exit code.
    pub async fn ask_exec(&self, ask: Ask) -> Result<(Answer, Vec<OwnedFd>, oneshot::Receiver<i32>), Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, exit) = oneshot::channel();
        lock(&self.waiting).exits.insert(id, sender);
        match self.ask_numbered(id, ask, Vec::new()).await {
            Ok((answer, fds)) => Ok((answer, fds, exit)),
            Err(error) => {
                lock(&self.waiting).exits.remove(&id);
                Err(error)
            }
        }
    }

    async fn ask_numbered(&self, id: u64, ask: Ask, fds: Vec<OwnedFd>) -> Result<(Answer, Vec<OwnedFd>), Error> {
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.lost {
                return Err(Error::Disconnected);
            }
            waiting.answers.insert(id, sender);
        }
        self.outgoing.send((Request { id, ask }, fds)).map_err(|_| Error::Disconnected)?;
        answer.await.map_err(|_| Error::Disconnected)?.map_err(Error::from)
    }
}

/// Closes the connection when one of its sides ends, however it does: the other learns of it, and with it all who wait.
struct Closing(Arc<AsyncFd<OwnedFd>>);

impl Drop for Closing {
    fn drop(&mut self) {
        // One that is closed already may be closed again.
        let _ = shutdown(self.0.get_ref().as_raw_fd(), Shutdown::Both);
    }
}

/// Ends every wait when nobody is left to end it.
struct Losing(Arc<Mutex<Waiting>>);

impl Drop for Losing {
    fn drop(&mut self) {
        *lock(&self.0) = Waiting { lost: true, ..Waiting::default() };
    }
}

async fn write(socket: Arc<AsyncFd<OwnedFd>>, mut requests: mpsc::UnboundedReceiver<(Request, Vec<OwnedFd>)>) {
    let _closing = Closing(Arc::clone(&socket));
    while let Some((request, fds)) = requests.recv().await {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let Ok(body) = protocol::encode(&request) else { continue };
        let sent = socket.async_io(Interest::WRITABLE, |fd| wire::send(fd.as_fd(), &body, &borrowed)).await;
        if let Err(error) = sent {
            tracing::warn!(%error, "the spawner cannot be reached");
            break;
        }
    }
}

async fn read(socket: Arc<AsyncFd<OwnedFd>>, waiting: Arc<Mutex<Waiting>>, exits: mpsc::UnboundedSender<Exit>) {
    let (_closing, _losing) = (Closing(Arc::clone(&socket)), Losing(Arc::clone(&waiting)));
    loop {
        let packet = match socket.async_io(Interest::READABLE, |fd| wire::receive(fd.as_fd())).await {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the spawner cannot be read");
                break;
            }
        };
        match protocol::decode::<Tell>(&packet.body) {
            Ok(Tell::Answer { id, answer }) => {
                if let Some(sender) = lock(&waiting).answers.remove(&id) {
                    // Whoever asked may have stopped waiting.
                    let _ = sender.send(answer.map(|answer| (answer, packet.fds)));
                }
            }
            Ok(Tell::ExecExit { id, code }) => {
                if let Some(sender) = lock(&waiting).exits.remove(&id) {
                    let _ = sender.send(code);
                }
            }
            Ok(Tell::Exit(exit)) => {
                // Nobody listens any more: it is told again to the next gateway.
                let _ = exits.send(exit);
            }
            Err(error) => {
                tracing::warn!(%error, "a message of the spawner's is not understood");
            }
        }
    }
}
