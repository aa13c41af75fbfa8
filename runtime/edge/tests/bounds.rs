//! What clients and endpoints may do to the proxy, and to each other through it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use carob_edge::Fixed;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// For what happens at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// An endpoint that answers each head with the same bytes as soon as it has come, or with nothing at all; the heads, each after
/// the number of its connection.
async fn endpoint(answer: &'static str) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (told, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for number in 1.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let told = told.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while stream.read_line(&mut head).await.is_ok_and(|length| length > 0) {
                    if head.ends_with("\r\n\r\n") {
                        let _ = told.send(format!("{number} {}", std::mem::take(&mut head)));
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (at, heads)
}

async fn proxy(endpoint: SocketAddr) -> Fixed {
    Fixed::start(([127, 0, 0, 1], 0).into(), vec![endpoint], 1).await.unwrap()
}

async fn http2(at: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(at).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends bytes and reads the answer's first line.
async fn say(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let length = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.expect("an answer").unwrap();
    String::from_utf8_lossy(&answer[..length]).lines().next().unwrap_or_default().to_owned()
}

const NOTHING: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn cookies_that_http2_splits_are_one_header_again() {
    let (endpoint, mut heads) = endpoint(NOTHING).await;
    let proxy = proxy(endpoint).await;
    let request = Request::get("http://a.test/").header("cookie", "a=1").header("cookie", "b=2; c=3");
    let answer = http2(proxy.address()).await.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 404);
    answer.into_body().collect().await.unwrap();
    let head = heads.recv().await.unwrap().to_lowercase();
    let cookies: Vec<&str> = head.lines().filter(|line| line.starts_with("cookie:")).collect();
    assert_eq!(cookies, ["cookie: a=1; b=2; c=3"]);
}

#[tokio::test]
async fn requests_that_follow_each_other_share_a_connection() {
    let (endpoint, mut heads) = endpoint("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").await;
    let proxy = proxy(endpoint).await;
    let mut sender = http2(proxy.address()).await;
    // So many that it would be cut off, if one of them counted as taken back.
    for _ in 0..600 {
        let request = Request::get("http://a.test/").body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "abc");
        assert!(heads.recv().await.unwrap().starts_with("1 "), "another connection was made");
    }
}

#[tokio::test]
async fn who_goes_on_sending_after_the_answer_holds_up_nobody_else() {
    let (endpoint, _heads) = endpoint(NOTHING).await;
    let proxy = proxy(endpoint).await;
    let mut slow = TcpStream::connect(proxy.address()).await.unwrap();
    let said = say(&mut slow, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx").await;
    assert!(said.contains("404"), "{said}");
    let mut other = TcpStream::connect(proxy.address()).await.unwrap();
    let said = say(&mut other, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(said.contains("404"), "{said}");
}

#[tokio::test]
async fn who_takes_requests_back_again_and_again_is_cut_off() {
    let (endpoint, _heads) = endpoint("").await;
    let proxy = proxy(endpoint).await;
    let mut sender = http2(proxy.address()).await;
    let mut other = http2(proxy.address()).await;
    let mut sent = 0;
    while !sender.is_closed() && sent < 3000 {
        let request = Request::get("http://a.test/").body(Empty::<Bytes>::new()).unwrap();
        // It is on its way, and then it isn't wanted any more.
        let _ = tokio::time::timeout(Duration::from_millis(2), sender.send_request(request)).await;
        sent += 1;
    }
    assert!(sender.is_closed(), "{sent} requests were taken back");
    assert!(sent > 100, "a client may change its mind: {sent}");
    let request = Request::get("http://a.test/").body(Empty::<Bytes>::new()).unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), other.send_request(request)).await;
    assert!(waiting.is_err(), "another connection is not meant");
}

#[tokio::test]
async fn a_client_that_is_gone_without_a_word_is_noticed() {
    let (endpoint, _heads) = endpoint(NOTHING).await;
    let proxy = proxy(endpoint).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(say(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.contains("404"));
    let (server, peer) = (proxy.address().port(), client.local_addr().unwrap().port());
    let ends = |from: u16, to: u16| format!("0100007F:{from:04X} 0100007F:{to:04X}");
    // The kernel's own word: timer 2 asks a silent peer whether it is there (Documentation/networking/proc_net_tcp.rst).
    let timer = |from: u16, to: u16| {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let row = table.lines().find(|line| line.contains(&ends(from, to))).map(str::to_owned);
        row.and_then(|row| row.split_whitespace().nth(5).map(|timer| timer[..2].to_owned()))
    };
    let asked = async {
        while timer(server, peer).as_deref() != Some("02") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("the client's connection is looked after");
}

#[tokio::test]
async fn a_transfer_coding_that_is_not_understood_is_refused() {
    let (endpoint, mut heads) = endpoint(NOTHING).await;
    let proxy = proxy(endpoint).await;
    for (coding, expected) in [("gzip, chunked", "501"), ("chunked, chunked", "400"), ("chunked", "404")] {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n");
        let said = say(&mut client, &request).await;
        assert!(said.contains(expected), "{coding}: {said}");
    }
    let head = heads.recv().await.unwrap().to_lowercase();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    while let Ok(more) = heads.try_recv() {
        assert!(!more.contains("POST"), "the others stay here: {more}");
    }
}
