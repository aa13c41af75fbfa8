//! What pods receive and send is counted, to the byte.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use carob_network::{Backend, Network, PodNetwork, Protocol, Traffic};

use crate::{Ipv4Net, TestNetwork, inside, inside_service, services};

/// IP and UDP.
const HEADERS: u64 = 28;

/// Sends datagrams of 100 bytes, and gets each back.
fn exchange(from: &PodNetwork, to: SocketAddrV4, count: u64) {
    inside(&from.netns, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for _ in 0..count {
            socket.send_to(&[0; 100], to).unwrap();
            assert_eq!(socket.recv(&mut [0; 200]).unwrap(), 100);
        }
    });
}

/// Sends everything back.
fn echo(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut buffer = [0; 200];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

fn echo_in(pod: &PodNetwork, port: u16) -> SocketAddrV4 {
    echo(inside(&pod.netns, || UdpSocket::bind((pod.address, port)).unwrap()));
    SocketAddrV4::new(pod.address, port)
}

fn both_ways(count: u64) -> u64 {
    count * (100 + HEADERS)
}

#[tokio::test]
async fn bytes_are_counted_by_pod_and_by_whether_the_peer_is_of_the_cluster() {
    let (test, outside) = (TestNetwork::start(15).await, TestNetwork::start(16).await);
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let world = outside.network.attach("world").await.unwrap();
    let (to_b, to_world) = (echo_in(&b, 7), echo_in(&world, 7));
    let of = |pod: &PodNetwork| test.network.traffic().of(pod.address).unwrap().expect("it is counted");
    assert_eq!(of(&a), Traffic::default());
    // By address and by a service, whose endpoint is the peer.
    exchange(&a, to_b, 3);
    let address = Ipv4Addr::new(services(15).network().octets()[0], services(15).network().octets()[1], 0, 9);
    let backend = Backend::Endpoints { endpoints: vec![to_b.into()], affinity: None, clients: None };
    test.network.replace_services([(inside_service(address, Protocol::Udp, 9), backend)].into()).await.unwrap();
    exchange(&a, SocketAddrV4::new(address, 9), 2);
    let cluster =
        |count| Traffic { cluster_received: both_ways(count), cluster_sent: both_ways(count), ..Traffic::default() };
    assert_eq!((of(&a), of(&b)), (cluster(5), cluster(5)));
    // This machine is of the cluster, by any address.
    let machine = UdpSocket::bind((test.network.gateway_address(), 0)).unwrap();
    let std::net::SocketAddr::V4(to_machine) = machine.local_addr().unwrap() else { panic!("IPv4") };
    echo(machine);
    exchange(&a, to_machine, 1);
    assert_eq!(of(&a), cluster(6));
    // Another network is the internet, until a node is there.
    exchange(&a, to_world, 4);
    let and_internet = Traffic { internet_received: both_ways(4), internet_sent: both_ways(4), ..cluster(6) };
    assert_eq!((of(&a), of(&b)), (and_internet, cluster(5)));
    test.network.set_nodes([world.address.into()].into()).await.unwrap();
    exchange(&a, to_world, 1);
    let both = Traffic { cluster_received: both_ways(7), cluster_sent: both_ways(7), ..and_internet };
    assert_eq!(of(&a), both);
    let all = test.network.traffic().read().unwrap();
    assert_eq!((all[&a.address], all[&b.address]), (both, cluster(5)));
    test.end().await;
    outside.end().await;
}

#[tokio::test]
async fn counts_go_on_through_a_restart_and_begin_at_zero_with_an_address() {
    let first = TestNetwork::start(17).await;
    let (a, b) = (first.network.attach("a").await.unwrap(), first.network.attach("b").await.unwrap());
    exchange(&a, echo_in(&b, 7), 3);
    let (instance, old) = (first.instance.clone(), first.network.traffic().clone());
    drop(first);
    let cidr = Ipv4Net::new(a.gateway, 24).unwrap().trunc();
    let config = crate::config(&instance, cidr, Some(services(17)));
    let second = TestNetwork { network: Network::start(config).await.unwrap(), instance };
    for (uid, pod) in [("a", &a), ("b", &b)] {
        second.network.adopt(uid, pod.address);
    }
    exchange(&a, echo_in(&b, 8), 2);
    let counted = second.network.traffic().of(a.address).unwrap().expect("it is counted");
    assert_eq!(counted.cluster_sent, both_ways(5));
    assert_eq!(old.of(a.address).unwrap(), Some(counted), "by whichever connection");
    second.network.release("a").await;
    assert_eq!(second.network.traffic().of(a.address).unwrap(), None);
    assert!(!second.network.traffic().read().unwrap().contains_key(&a.address));
    second.end().await;
}

/// One lookup in the kernel for each pod that is asked for, and one pass over all: neither costs a pod's start or a second of
/// metering anything that could be noticed.
#[tokio::test]
async fn thousands_of_pods_are_read_at_once() {
    let test = TestNetwork::start(18).await;
    let mut addresses = Vec::new();
    for number in 0..2_000_u32 {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 100, 0)) + number);
        test.network.adopt(&format!("pod-{number}"), address);
        addresses.push(address);
    }
    let begin = std::time::Instant::now();
    let all = test.network.traffic().read().unwrap();
    let took = begin.elapsed();
    assert!(addresses.iter().all(|address| all.get(address) == Some(&Traffic::default())));
    assert!(took < Duration::from_millis(500), "{took:?}");
    test.end().await;
}
