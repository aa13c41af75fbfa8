//! An echo server on TCP and UDP.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::thread;

pub fn serve(port: u16) -> io::Result<()> {
    let udp = crate::everywhere(port, UdpSocket::bind)?;
    let tcp = crate::everywhere(port, TcpListener::bind)?;
    println!("listening on {port}");
    thread::spawn(move || {
        let mut datagram = vec![0; 64 << 10];
        while let Ok((size, peer)) = udp.recv_from(&mut datagram) {
            // A peer that is gone is its own problem.
            let _ = udp.send_to(&datagram[..size], peer);
        }
    });
    for stream in tcp.incoming() {
        let stream = stream?;
        thread::spawn(move || io::copy(&mut &stream, &mut &stream));
    }
    Ok(())
}
