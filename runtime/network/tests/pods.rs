//! Pods' networks on the real kernel: run as root.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

use carob_network::{ApiService, Ipv4Net, Network, NetworkConfig, PodNetwork};
use nix::sched::{CloneFlags, setns};

/// Runs something inside a pod's namespace, on a thread of its own.
fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

struct TestNetwork {
    network: Network,
    instance: String,
}

impl TestNetwork {
    async fn start(tag: u8, api_service: Option<ApiService>) -> Self {
        let instance = format!("{tag:02x}{:06x}", std::process::id());
        let pod_cidr = carob_network::free_cidr(
            &instance,
            (0..200).map(|third| Ipv4Net::new(Ipv4Addr::new(10, 200 + tag, third, 0), 24).unwrap()),
        )
        .unwrap();
        let config = NetworkConfig { instance: instance.clone(), pod_cidr, pool: 2, api_service };
        Self { network: Network::start(config).await.unwrap(), instance }
    }

    async fn end(self) {
        Network::teardown(&self.instance).await.unwrap();
        let links = Command::new("ls").arg("/sys/class/net").output().unwrap().stdout;
        let links = String::from_utf8(links).unwrap();
        assert!(!links.contains(&self.instance), "left behind: {links}");
    }
}

fn talk(from: &PodNetwork, to: SocketAddrV4) -> String {
    inside(&from.netns, || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn echo_once(listener: TcpListener) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        write!(stream, "{heard} {}", peer.ip()).unwrap();
    })
}

#[tokio::test]
async fn pods_reach_each_other_by_address_and_see_the_senders_own() {
    let test = TestNetwork::start(1, None).await;
    test.network.fill_pool();
    let a = test.network.attach("a").await.unwrap();
    let b = test.network.attach("b").await.unwrap();
    assert_ne!(a.address, b.address);
    let listener = inside(&b.netns, || TcpListener::bind((b.address, 8080)).unwrap());
    let server = echo_once(listener);
    assert_eq!(talk(&a, SocketAddrV4::new(b.address, 8080)), format!("hello {}", a.address));
    server.join().unwrap();
    test.end().await;
}

#[tokio::test]
async fn a_pod_reaches_the_machine_on_the_bridge_and_itself_on_loopback() {
    let test = TestNetwork::start(2, None).await;
    let pod = test.network.attach("a").await.unwrap();
    let listener = TcpListener::bind((test.network.gateway_address(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = echo_once(listener);
    assert_eq!(talk(&pod, SocketAddrV4::new(pod.gateway, port)), format!("hello {}", pod.address));
    server.join().unwrap();
    let listener = inside(&pod.netns, || TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let server = echo_once(listener);
    assert_eq!(talk(&pod, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)), "hello 127.0.0.1");
    server.join().unwrap();
    test.end().await;
}

#[tokio::test]
async fn the_kubernetes_service_address_leads_to_the_api_server() {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let instance_cidr = Ipv4Addr::new(10, 203, 0, 0);
    let gateway = carob_network::gateway_of(Ipv4Net::new(instance_cidr, 24).unwrap()).unwrap();
    let service = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 443);
    let api = ApiService { service, target: SocketAddrV4::new(gateway, port) };
    let test = TestNetwork::start(3, Some(api)).await;
    assert_eq!(test.network.gateway_address(), gateway);
    let pod = test.network.attach("a").await.unwrap();
    let server = echo_once(TcpListener::bind((gateway, port)).unwrap());
    assert_eq!(talk(&pod, service), format!("hello {}", pod.address));
    server.join().unwrap();
    test.end().await;
}

#[tokio::test]
async fn packets_to_other_networks_leave_with_the_machines_address() {
    // A second network stands for the world outside: its pods know nothing of the first one's addresses.
    let test = TestNetwork::start(4, None).await;
    let outside = TestNetwork::start(5, None).await;
    let pod = test.network.attach("a").await.unwrap();
    let peer = outside.network.attach("b").await.unwrap();
    let server = echo_once(inside(&peer.netns, || TcpListener::bind((peer.address, 80)).unwrap()));
    assert_eq!(talk(&pod, SocketAddrV4::new(peer.address, 80)), format!("hello {}", peer.gateway));
    server.join().unwrap();
    test.end().await;
    outside.end().await;
}

#[tokio::test]
async fn a_second_start_takes_over_and_never_hands_out_an_adopted_or_living_address() {
    let first = TestNetwork::start(6, None).await;
    let kept = first.network.attach("kept").await.unwrap();
    let orphan = first.network.attach("orphan").await.unwrap();
    drop(first.network);
    let cidr = Ipv4Net::new(kept.gateway, kept.prefix).unwrap().trunc();
    let config = NetworkConfig { instance: first.instance.clone(), pod_cidr: cidr, pool: 0, api_service: None };
    let second = Network::start(config).await.unwrap();
    second.adopt("kept", kept.address);
    let new = second.attach("new").await.unwrap();
    assert_ne!(new.address, kept.address);
    assert_ne!(new.address, orphan.address, "its link is still there");
    TestNetwork { network: second, instance: first.instance }.end().await;
}

#[tokio::test]
async fn an_overlapping_cidr_is_refused_with_the_interface_that_has_it() {
    let first = TestNetwork::start(7, None).await;
    let taken = Ipv4Net::new(first.network.gateway_address(), 24).unwrap().trunc();
    let config = NetworkConfig { instance: "ffffffff".into(), pod_cidr: taken, pool: 0, api_service: None };
    let error = Network::start(config).await.err().expect("two networks with one CIDR");
    assert!(error.to_string().contains(&format!("cb-{}", first.instance)), "{error}");
    first.end().await;
}
