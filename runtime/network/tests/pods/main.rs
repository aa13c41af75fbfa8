//! Pods' networks on the real kernel: run as root.

mod dual_stack;
mod policies;
mod traffic;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;

use carob_network::{Backend, Frontend, HostPort, Ipv4Net, Network, NetworkConfig, PodNetwork, Protocol, Side};
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

/// A range of services for each test.
fn services(tag: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 140 + tag, 0, 0), 16).unwrap()
}

struct TestNetwork {
    network: Network,
    instance: String,
}

/// A network of pods with these addresses, and services of a test's range.
fn config(instance: &str, pods: Ipv4Net, services: Option<Ipv4Net>) -> NetworkConfig {
    NetworkConfig {
        instance: instance.to_owned(),
        pod_cidr: pods,
        cluster_cidr: pods,
        annexed: false,
        service_cidr: services,
        cluster_cidr6: None,
        service_cidr6: None,
        open_metadata: false,
    }
}

impl TestNetwork {
    async fn start(tag: u8) -> Self {
        Self::start_as(tag, |config| config).await
    }

    async fn start_as(tag: u8, change: impl FnOnce(NetworkConfig) -> NetworkConfig) -> Self {
        let instance = format!("{tag:02x}{:06x}", std::process::id());
        let pod_cidr = carob_network::free_cidr(
            &instance,
            (0..200).map(|third| Ipv4Net::new(Ipv4Addr::new(10, 200 + tag, third, 0), 24).unwrap()),
        )
        .unwrap();
        let config = change(config(&instance, pod_cidr, Some(services(tag))));
        Self { network: Network::start(config).await.unwrap(), instance }
    }

    async fn end(self) {
        Network::teardown(&self.instance).await.unwrap();
        let links = Command::new("ls").arg("/sys/class/net").output().unwrap().stdout;
        let links = String::from_utf8(links).unwrap();
        assert!(!links.contains(&self.instance), "left behind: {links}");
    }
}

impl Drop for TestNetwork {
    /// A test that fails leaves nothing that others stumble over.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let instance = self.instance.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = std::thread::spawn(move || runtime.block_on(Network::teardown(&instance))).join();
        }
    }
}

fn talk(from: &PodNetwork, to: impl Into<SocketAddr>) -> String {
    let to = to.into();
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
    let test = TestNetwork::start(1).await;
    test.network.fill_pool(2);
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
    let test = TestNetwork::start(2).await;
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

fn inside_service(address: impl Into<IpAddr>, protocol: Protocol, port: u16) -> Frontend {
    Frontend { side: Side::Inside, address: address.into(), protocol, port }
}

fn endpoints<A: Copy + Into<SocketAddr>>(all: &[A]) -> Backend {
    Backend::Endpoints { endpoints: all.iter().map(|one| (*one).into()).collect(), affinity: None, clients: None }
}

fn with_affinity(all: &[SocketAddrV4]) -> Backend {
    let endpoints = all.iter().map(|one| (*one).into()).collect();
    Backend::Endpoints { endpoints, affinity: Some(60), clients: None }
}

/// Answers every connection with the address it listens on, until the namespace's end.
fn name_itself(pod: &PodNetwork) {
    name_itself_at(pod, pod.address);
}

fn name_itself_at(pod: &PodNetwork, address: impl Into<IpAddr>) {
    let address = address.into();
    let listener = inside(&pod.netns, || TcpListener::bind((address, 80)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).unwrap();
            write!(stream, "{address} {}", stream.peer_addr().unwrap().ip()).unwrap();
        }
    });
}

fn refused(from: Option<&PodNetwork>, to: impl Into<SocketAddr>) {
    let to = to.into();
    let connect = || TcpStream::connect_timeout(&to, std::time::Duration::from_secs(5));
    let error = match from {
        Some(pod) => inside(&pod.netns, connect),
        None => connect(),
    }
    .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
}

#[tokio::test]
async fn a_service_leads_to_its_endpoints_and_the_pod_sees_who_asks() {
    let test = TestNetwork::start(3).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let address = Ipv4Addr::from(u32::from(services(3).network()) + 7);
    let service = SocketAddrV4::new(address, 8000);
    let frontend = inside_service(address, Protocol::Tcp, 8000);
    name_itself(&a);
    name_itself(&b);
    refused(Some(&a), service);
    refused(None, service);

    let (of_a, of_b) = (SocketAddrV4::new(a.address, 80), SocketAddrV4::new(b.address, 80));
    test.network.replace_services([(frontend, endpoints(&[of_b]))].into()).await.unwrap();
    assert_eq!(talk(&a, service), format!("{} {}", b.address, a.address));
    assert_eq!(
        talk(&b, service),
        format!("{} {}", b.address, b.gateway),
        "itself: the answer has to come back the same way"
    );
    let mut from_host = TcpStream::connect(service).unwrap();
    from_host.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    from_host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{} {}", b.address, b.gateway));

    test.network.change_services(vec![(frontend, Some(endpoints(&[of_a, of_b])))]).await.unwrap();
    let answers: std::collections::HashSet<_> = (0..40).map(|_| talk(&a, service)).collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    let sticky = with_affinity(&[of_a, of_b]);
    test.network.change_services(vec![(frontend, Some(sticky))]).await.unwrap();
    let answers: std::collections::HashSet<_> = (0..20).map(|_| talk(&a, service)).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let only = if answers.iter().next().unwrap().starts_with(&a.address.to_string()) { of_b } else { of_a };
    let sticky = with_affinity(&[only]);
    test.network.change_services(vec![(frontend, Some(sticky))]).await.unwrap();
    assert!(talk(&a, service).starts_with(&only.ip().to_string()), "the one it was sent to is gone");
    test.network.change_services(vec![(frontend, Some(Backend::Refused))]).await.unwrap();
    refused(Some(&a), service);
    test.network.change_services(vec![(frontend, None)]).await.unwrap();
    refused(None, service);
    test.end().await;
}

#[tokio::test]
async fn ten_thousand_services_are_written_and_changed_quickly() {
    let test = TestNetwork::start(8).await;
    let pod = test.network.attach("a").await.unwrap();
    name_itself(&pod);
    let first = u32::from(services(8).network());
    let here = endpoints(&[SocketAddrV4::new(pod.address, 80); 3]);
    let all: Vec<_> =
        (0..10_000).map(|number| inside_service(Ipv4Addr::from(first + number), Protocol::Tcp, 80)).collect();
    let begin = std::time::Instant::now();
    test.network.replace_services(all.iter().map(|frontend| (*frontend, here.clone())).collect()).await.unwrap();
    let whole = begin.elapsed();
    let last = SocketAddr::new(all[9_999].address, 80);
    assert!(talk(&pod, last).starts_with(&pod.address.to_string()));
    let begin = std::time::Instant::now();
    test.network.change_services(vec![(all[9_999], Some(Backend::Refused))]).await.unwrap();
    let took = begin.elapsed();
    refused(Some(&pod), last);
    assert!(took * 4 < whole, "one of ten thousand: {took:?}, all of them: {whole:?}");
    test.end().await;
}

#[tokio::test]
async fn datagrams_do_not_go_on_to_an_endpoint_that_is_gone() {
    let test = TestNetwork::start(9).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let address = Ipv4Addr::from(u32::from(services(9).network()) + 7);
    let frontend = inside_service(address, Protocol::Udp, 53);
    let socket_in = |pod: &PodNetwork, port| {
        let socket = inside(&pod.netns, || UdpSocket::bind((pod.address, port)).unwrap());
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket
    };
    let (first, second, client) = (socket_in(&a, 53), socket_in(&b, 53), socket_in(&a, 4000));
    let heard = |socket: &UdpSocket| {
        let mut buffer = [0; 16];
        socket.recv(&mut buffer).map(|length| buffer[..length].to_vec())
    };
    test.network.replace_services([(frontend, endpoints(&[SocketAddrV4::new(a.address, 53)]))].into()).await.unwrap();
    client.send_to(b"one", (address, 53)).unwrap();
    assert_eq!(heard(&first).unwrap(), b"one");
    let change = (frontend, Some(endpoints(&[SocketAddrV4::new(b.address, 53)])));
    test.network.change_services(vec![change]).await.unwrap();
    client.send_to(b"two", (address, 53)).unwrap();
    assert_eq!(heard(&second).unwrap(), b"two");
    test.end().await;
}

#[tokio::test]
async fn a_pod_cannot_send_from_anothers_address() {
    let test = TestNetwork::start(10).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let listener = inside(&b.netns, || UdpSocket::bind((b.address, 9)).unwrap());
    listener.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let other = Ipv4Addr::from(u32::from(a.address) + 100);
    let ip = |arguments: &[&str]| {
        inside(&a.netns, || assert!(Command::new("ip").args(arguments).status().unwrap().success()));
    };
    ip(&["address", "add", &format!("{other}/32"), "dev", "eth0"]);
    let send = |from: Ipv4Addr| {
        inside(&a.netns, || UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (b.address, 9)).unwrap());
    };
    send(other);
    assert!(listener.recv(&mut [0; 4]).is_err(), "a false sender gets through");
    listener.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    send(a.address);
    let (_, sender) = listener.recv_from(&mut [0; 4]).unwrap();
    assert_eq!(sender.ip(), a.address, "the false sender was only late");
    test.end().await;
}

#[tokio::test]
async fn packets_to_other_networks_leave_with_the_machines_address() {
    // A second network stands for the world outside: its pods know nothing of the first one's addresses.
    let test = TestNetwork::start(4).await;
    let outside = TestNetwork::start(5).await;
    let pod = test.network.attach("a").await.unwrap();
    let peer = outside.network.attach("b").await.unwrap();
    let server = echo_once(inside(&peer.netns, || TcpListener::bind((peer.address, 80)).unwrap()));
    let answer = talk(&pod, SocketAddrV4::new(peer.address, 80));
    let seen: Ipv4Addr = answer.strip_prefix("hello ").unwrap().parse().unwrap();
    assert!(seen != pod.address && TcpListener::bind((seen, 0)).is_ok(), "an address of the machine: {seen}");
    server.join().unwrap();
    test.end().await;
    outside.end().await;
}

#[tokio::test]
async fn a_second_start_takes_over_and_never_hands_out_an_adopted_or_living_address() {
    let first = TestNetwork::start(6).await;
    let kept = first.network.attach("kept").await.unwrap();
    let orphan = first.network.attach("orphan").await.unwrap();
    let instance = first.instance.clone();
    drop(first);
    let cidr = Ipv4Net::new(kept.gateway, 24).unwrap().trunc();
    let second = Network::start(config(&instance, cidr, None)).await.unwrap();
    second.adopt("kept", kept.address);
    let new = second.attach("new").await.unwrap();
    assert_ne!(new.address, kept.address);
    assert_ne!(new.address, orphan.address, "its link is still there");
    TestNetwork { network: second, instance }.end().await;
}

#[tokio::test]
async fn an_overlapping_cidr_is_refused_with_the_interface_that_has_it() {
    let first = TestNetwork::start(7).await;
    let taken = Ipv4Net::new(first.network.gateway_address(), 24).unwrap().trunc();
    let error = Network::start(config("ffffffff", taken, None)).await.err().expect("two networks with one CIDR");
    assert!(error.to_string().contains(&format!("cb-{}", first.instance)), "{error}");
    first.end().await;
}

#[tokio::test]
async fn a_held_address_is_for_services_alone_and_only_for_the_clients_that_it_is_for() {
    let test = TestNetwork::start(14).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    name_itself(&b);
    let address = Ipv4Addr::new(198, 19, 250, 14);
    test.network.hold(vec![address.into()]).await.unwrap();
    let own = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    refused(None, SocketAddrV4::new(address, own.local_addr().unwrap().port()));
    let lead = async |clients| {
        let endpoints = vec![SocketAddr::new(b.address.into(), 80)];
        let backend = Backend::Endpoints { endpoints, affinity: None, clients };
        test.network.replace_services([(inside_service(address, Protocol::Tcp, 80), backend)].into()).await.unwrap();
    };
    let service = SocketAddrV4::new(address, 80);
    let connects = |pod: &PodNetwork| {
        inside(&pod.netns, || {
            TcpStream::connect_timeout(&service.into(), std::time::Duration::from_millis(400)).is_ok()
        })
    };
    let only = |pod: &PodNetwork| (IpAddr::from(pod.address), IpAddr::from(pod.address));
    lead(None).await;
    let mut stream = TcpStream::connect_timeout(&service.into(), std::time::Duration::from_secs(5)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with(&b.address.to_string()), "the machine itself gets its answers: {answer}");
    assert!(talk(&a, service).starts_with(&b.address.to_string()));
    lead(Some(vec![([0, 0, 0, 0].into(), [9, 255, 255, 255].into()), only(&b)])).await;
    assert!(!connects(&a));
    lead(Some(vec![only(&a)])).await;
    assert!(connects(&a));
    // Outside the same address leads to the same pod, until none of this machine is to take it.
    let outside = Frontend { side: Side::Outside, ..inside_service(address, Protocol::Tcp, 80) };
    let limited = Backend::Endpoints {
        endpoints: vec![SocketAddr::new(b.address.into(), 80)],
        affinity: None,
        clients: Some(vec![only(&b)]),
    };
    let both = [inside_service(address, Protocol::Tcp, 80), outside].map(|frontend| (frontend, limited.clone()));
    test.network.replace_services(both.into()).await.unwrap();
    assert!(!connects(&a));
    test.network.change_services(vec![(outside, Some(Backend::Dropped))]).await.unwrap();
    assert!(!connects(&a), "what changes outside opens the inside");
    test.network.hold(Vec::new()).await.unwrap();
    assert!(TcpListener::bind((address, 0)).is_err(), "the machine has it no more");
    test.end().await;
}

#[tokio::test]
async fn a_port_of_the_machine_is_on_its_own_addresses_and_takes_none_from_a_service() {
    // A pod of a second network stands for another machine.
    let (test, outside) = (TestNetwork::start(19).await, TestNetwork::start(25).await);
    let other = outside.network.attach("other").await.unwrap();
    name_itself(&other);
    let (client, server, thief) = (
        test.network.attach("client").await.unwrap(),
        test.network.attach("server").await.unwrap(),
        test.network.attach("thief").await.unwrap(),
    );
    name_itself(&server);
    name_itself(&thief);
    let gateway = test.network.gateway_address();
    let cluster_ip = Ipv4Addr::from(u32::from(services(19).network()) + 7);
    let held = Ipv4Addr::new(198, 19, 250, 19);
    test.network.hold(vec![held.into()]).await.unwrap();
    let to_server = endpoints(&[SocketAddrV4::new(server.address, 80)]);
    let external = inside_service(gateway, Protocol::Tcp, 8001);
    let known = [(inside_service(cluster_ip, Protocol::Tcp, 8000), to_server.clone()), (external, to_server)];
    test.network.replace_services(known.into()).await.unwrap();
    let port = |address: Ipv4Addr, port| HostPort {
        address: Some(address.into()),
        protocol: Protocol::Tcp,
        port,
        pod_port: 80,
    };
    let ports = [cluster_ip, held, gateway].map(|address| port(address, 8000));
    let more = [port(gateway, 8001), port(cluster_ip, 8002), port(other.address, 80)];
    let ports = ports.into_iter().chain(more).collect();
    test.network.publish("thief", vec![thief.address.into()], ports).await.unwrap();
    let leads_to = |address, port, pod: &PodNetwork| {
        let answer = talk(&client, SocketAddrV4::new(address, port));
        assert!(answer.starts_with(&format!("{} ", pod.address)), "{address}:{port} leads to {answer}");
    };
    leads_to(gateway, 8000, &thief);
    leads_to(cluster_ip, 8000, &server);
    leads_to(gateway, 8001, &server);
    refused(Some(&client), SocketAddrV4::new(cluster_ip, 8002));
    refused(Some(&client), SocketAddrV4::new(held, 8000));
    leads_to(other.address, 80, &other);
    test.network.change_services(vec![(external, None)]).await.unwrap();
    leads_to(gateway, 8001, &thief);
    test.end().await;
    outside.end().await;
}

#[tokio::test]
async fn a_pods_link_takes_no_ipv6_from_it() {
    let test = TestNetwork::start(20).await;
    // The second is made by a thread that is in the first one's namespace.
    let pods = [test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap()];
    let bandwidth = carob_network::Bandwidth { egress: Some(1 << 20), ..Default::default() };
    test.network.shape(pods[0].address, bandwidth).await.unwrap();
    let links = std::fs::read_dir("/proc/sys/net/ipv6/conf").unwrap().map(|entry| entry.unwrap().path());
    let own: Vec<_> = links.filter(|link| link.to_string_lossy().contains(&test.instance[..6])).collect();
    assert!(own.len() >= 4, "the bridge, two pods and what limits one: {own:?}");
    for link in own {
        let off = std::fs::read_to_string(link.join("disable_ipv6")).unwrap();
        assert_eq!(off.trim(), "1", "{}", link.display());
    }
    test.end().await;
}

#[tokio::test]
async fn a_change_that_the_kernel_refused_is_made_when_it_is_asked_for_again() {
    let test = TestNetwork::start(22).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    name_itself(&b);
    let address = Ipv4Addr::from(u32::from(services(22).network()) + 7);
    let change = || {
        let backend = endpoints(&[SocketAddrV4::new(b.address, 80)]);
        test.network.change_services(vec![(inside_service(address, Protocol::Tcp, 80), Some(backend))])
    };
    test.network.replace_services(std::collections::HashMap::new()).await.unwrap();
    let table = format!("carob-{}", test.instance);
    assert!(Command::new("nft").args(["delete", "table", "ip", &table]).status().unwrap().success());
    change().await.expect_err("there is no table");
    let cidr = Ipv4Net::new(a.gateway, 24).unwrap().trunc();
    drop(Network::start(config(&test.instance, cidr, Some(services(22)))).await.unwrap());
    change().await.unwrap();
    assert!(talk(&a, SocketAddrV4::new(address, 80)).starts_with(&b.address.to_string()));
    test.end().await;
}

#[tokio::test]
async fn a_pod_packs_no_packets_as_nodes_do() {
    const VXLAN: u16 = 4789;
    let (test, outside) = (TestNetwork::start(23).await, TestNetwork::start(24).await);
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let world = outside.network.attach("world").await.unwrap();
    let arrives = |socket: UdpSocket| {
        socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let to = socket.local_addr().unwrap();
        inside(&a.netns, || UdpSocket::bind(("0.0.0.0", 0)).unwrap().send_to(b"x", to).unwrap());
        socket.recv(&mut [0; 4]).is_ok()
    };
    let in_pod = |pod: &PodNetwork, port| inside(&pod.netns, || UdpSocket::bind((pod.address, port)).unwrap());
    let here = |port| UdpSocket::bind((test.network.gateway_address(), port)).unwrap();
    assert!(arrives(here(0)) && arrives(in_pod(&world, VXLAN + 1)) && arrives(in_pod(&b, VXLAN)));
    assert!(!arrives(here(VXLAN)), "this machine takes it for another node's");
    assert!(!arrives(in_pod(&world, VXLAN)), "another machine takes it for this node's");
    test.end().await;
    outside.end().await;
}

#[tokio::test]
async fn who_was_sent_to_an_endpoint_that_is_gone_stays_with_the_next_one() {
    let test = TestNetwork::start(26).await;
    let mut pods = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let pod = test.network.attach(name).await.unwrap();
        name_itself(&pod);
        pods.push(pod);
    }
    let address = Ipv4Addr::from(u32::from(services(26).network()) + 7);
    let (frontend, service) = (inside_service(address, Protocol::Tcp, 80), SocketAddrV4::new(address, 80));
    let of = |pods: &[PodNetwork]| {
        with_affinity(&pods.iter().map(|pod| SocketAddrV4::new(pod.address, 80)).collect::<Vec<_>>())
    };
    test.network.replace_services([(frontend, of(&pods))].into()).await.unwrap();
    let first = talk(&pods[0], service);
    let left: Vec<SocketAddrV4> = pods
        .iter()
        .map(|pod| SocketAddrV4::new(pod.address, 80))
        .filter(|endpoint| !first.starts_with(&format!("{} ", endpoint.ip())))
        .collect();
    test.network.change_services(vec![(frontend, Some(with_affinity(&left)))]).await.unwrap();
    let answers: std::collections::HashSet<_> = (0..20).map(|_| talk(&pods[0], service)).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    test.end().await;
}

#[tokio::test]
async fn datagrams_for_a_port_of_the_machine_find_the_endpoint_that_comes_later() {
    let test = TestNetwork::start(27).await;
    let (client, server) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    test.network.replace_services(std::collections::HashMap::new()).await.unwrap();
    let socket_in = |pod: &PodNetwork, port| {
        let socket = inside(&pod.netns, || UdpSocket::bind((pod.address, port)).unwrap());
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket
    };
    let (from, to) = (socket_in(&client, 12_345), socket_in(&server, 53));
    inside(&client.netns, || from.connect((test.network.gateway_address(), 30_053)).unwrap());
    // A link that was made just now may lose what is sent first.
    from.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let is_refused = || {
        from.send(b"early").is_ok()
            && from.recv(&mut [0; 8]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    assert!((0..25).any(|_| is_refused()), "nobody is there yet");
    let everywhere = inside_service(Ipv4Addr::UNSPECIFIED, Protocol::Udp, 30_053);
    let endpoint = endpoints(&[SocketAddrV4::new(server.address, 53)]);
    test.network.change_services(vec![(everywhere, Some(endpoint))]).await.unwrap();
    from.send(b"late").unwrap();
    let mut heard = [0; 8];
    let length = to.recv(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"late");
    test.end().await;
}

#[tokio::test]
async fn rules_that_somebody_took_away_are_put_back_whole() {
    let test = TestNetwork::start(28).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    name_itself(&b);
    let address = Ipv4Addr::from(u32::from(services(28).network()) + 7);
    let to_b = endpoints(&[SocketAddrV4::new(b.address, 80)]);
    test.network.replace_services([(inside_service(address, Protocol::Tcp, 80), to_b)].into()).await.unwrap();
    let closed = TcpListener::bind((test.network.gateway_address(), 0)).unwrap().local_addr().unwrap();
    let open = TcpListener::bind(closed).unwrap();
    test.network.close([closed].into()).await.unwrap();
    let deny =
        carob_network::PolicyChange::Isolate(carob_network::Direction::Ingress, a.address.into(), Some([].into()));
    test.network.replace_policies(vec![deny]).await.unwrap();
    assert!(!test.network.restore().await.unwrap(), "they are there");
    let table = format!("carob-{}", test.instance);
    assert!(Command::new("nft").args(["delete", "table", "ip", &table]).status().unwrap().success());
    assert!(test.network.restore().await.unwrap());
    assert!(talk(&a, SocketAddrV4::new(address, 80)).starts_with(&b.address.to_string()), "Services");
    refused(Some(&a), closed);
    let _listening = inside(&a.netns, || TcpListener::bind((a.address, 80)).unwrap());
    let to_a = SocketAddr::from((a.address, 80));
    let reached = inside(&b.netns, || TcpStream::connect_timeout(&to_a, std::time::Duration::from_millis(400)).is_ok());
    assert!(!reached, "policies");
    assert!(test.network.traffic().of(a.address).unwrap().is_some(), "counters");
    drop(open);
    test.end().await;
}

#[tokio::test]
async fn rules_of_another_shape_let_no_connection_begin_before_policies_are_known() {
    let first = TestNetwork::start(29).await;
    let (a, b) = (first.network.attach("a").await.unwrap(), first.network.attach("b").await.unwrap());
    let _listening = inside(&b.netns, || TcpListener::bind((b.address, 80)).unwrap());
    let reaches = || {
        let to = SocketAddr::from((b.address, 80));
        inside(&a.netns, || TcpStream::connect_timeout(&to, std::time::Duration::from_millis(400)).is_ok())
    };
    assert!(reaches());
    let (instance, cidr) = (first.instance.clone(), Ipv4Net::new(a.gateway, 24).unwrap().trunc());
    drop(first);
    // As another version might have had it.
    let table = format!("carob-{instance}");
    let nft = |command: &str| assert!(Command::new("nft").arg(command).status().unwrap().success(), "{command}");
    nft(&format!("delete table ip {table}"));
    nft(&format!("add table ip {table}"));
    nft(&format!("add set ip {table} hairpin {{ type ipv4_addr; }}"));
    let network = Network::start(config(&instance, cidr, None)).await.unwrap();
    for (uid, pod) in [("a", &a), ("b", &b)] {
        network.adopt(uid, pod.address);
    }
    assert!(!reaches());
    network.replace_policies(Vec::new()).await.unwrap();
    assert!(reaches());
    TestNetwork { network, instance }.end().await;
}
