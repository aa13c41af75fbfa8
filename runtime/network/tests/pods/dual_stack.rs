//! Pods that have an IPv6 address beside the IPv4 one: what holds for one kind holds for the other.

use std::collections::HashSet;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use carob_network::{
    Allow, Backend, Direction, Frontend, HostPort, Ipv6Net, Member, Network, Peers, PodNetwork, PolicyChange, Ports,
    Protocol, Side,
};

use crate::{TestNetwork, echo_once, endpoints, inside, inside_service, name_itself, name_itself_at, refused, talk};

/// A range for each test and process.
fn range(kind: u16, tag: u8) -> Ipv6Net {
    let [_, _, high, low] = std::process::id().to_be_bytes().map(u16::from);
    Ipv6Net::new_assert(Ipv6Addr::new(0xfdca, kind, tag.into(), high << 8 | low, 0, 0, 0, 0), 96)
}

fn service(tag: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(range(2, tag).network()) + 7)
}

async fn start(tag: u8) -> TestNetwork {
    TestNetwork::start_as(tag, |mut config| {
        config.cluster_cidr6 = Some(range(1, tag));
        config.service_cidr6 = Some(range(2, tag));
        config
    })
    .await
}

fn six(pod: &PodNetwork) -> Ipv6Addr {
    pod.address6.unwrap()
}

fn gateway(network: &Network) -> Ipv6Addr {
    network.address6(network.gateway_address()).unwrap()
}

fn reaches(from: &PodNetwork, to: (Ipv6Addr, u16)) -> bool {
    inside(&from.netns, || TcpStream::connect_timeout(&to.into(), Duration::from_millis(400)).is_ok())
}

fn run_in(pod: &PodNetwork, arguments: &[&str]) {
    inside(&pod.netns, || assert!(Command::new("ip").args(arguments).status().unwrap().success()));
}

#[tokio::test]
async fn pods_reach_each_other_and_the_machine_and_are_who_they_are() {
    let test = start(30).await;
    test.network.fill_pool(2);
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    assert_eq!(six(&a).octets()[12..], a.address.octets(), "it ends in the IPv4 one");
    let server = echo_once(inside(&b.netns, || TcpListener::bind((six(&b), 8080)).unwrap()));
    assert_eq!(talk(&a, (six(&b), 8080)), format!("hello {}", six(&a)));
    server.join().unwrap();
    let server = echo_once(TcpListener::bind((gateway(&test.network), 8080)).unwrap());
    assert_eq!(talk(&a, (gateway(&test.network), 8080)), format!("hello {}", six(&a)));
    server.join().unwrap();
    let addresses = inside(&a.netns, || Command::new("ip").args(["-6", "address", "show", "dev", "eth0"]).output());
    let addresses = String::from_utf8(addresses.unwrap().stdout).unwrap();
    assert!(!addresses.contains("fe80") && !addresses.contains("tentative"), "{addresses}");

    let listener = inside(&b.netns, || UdpSocket::bind((six(&b), 9)).unwrap());
    let other = Ipv6Addr::from(u128::from(six(&a)) + 100);
    run_in(&a, &["address", "add", &format!("{other}/128"), "dev", "eth0", "nodad"]);
    let send = |from| inside(&a.netns, || UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (six(&b), 9)).unwrap());
    listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    send(other);
    assert!(listener.recv(&mut [0; 4]).is_err(), "a false sender gets through");
    listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    send(six(&a));
    assert_eq!(listener.recv_from(&mut [0; 4]).unwrap().1.ip(), six(&a));
    test.end().await;
}

#[tokio::test]
async fn services_lead_to_endpoints_of_their_kind() {
    let test = start(31).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    for pod in [&a, &b] {
        name_itself_at(pod, six(pod));
    }
    let at = SocketAddr::from((service(31), 8000));
    refused(Some(&a), at);
    refused(None, at);
    let frontend = inside_service(service(31), Protocol::Tcp, 8000);
    let port =
        Frontend { side: Side::Inside, address: Ipv6Addr::UNSPECIFIED.into(), protocol: Protocol::Tcp, port: 30_080 };
    let to = |pod: &PodNetwork| SocketAddr::from((six(pod), 80));
    let known = [(frontend, endpoints(&[to(&b)])), (port, endpoints(&[to(&b)]))];
    test.network.replace_services(known.into()).await.unwrap();
    assert_eq!(talk(&a, at), format!("{} {}", six(&b), six(&a)));
    assert_eq!(talk(&b, at), format!("{} {}", six(&b), gateway(&test.network)), "itself");
    assert_eq!(talk(&a, (gateway(&test.network), 30_080)), format!("{} {}", six(&b), six(&a)));
    let mut from_here = TcpStream::connect(at).unwrap();
    from_here.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    from_here.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{} {}", six(&b), gateway(&test.network)));

    let sticky = Backend::Endpoints { endpoints: vec![to(&a), to(&b)], affinity: Some(60), clients: None };
    test.network.change_services(vec![(frontend, Some(sticky))]).await.unwrap();
    let answers: HashSet<_> = (0..20).map(|_| talk(&a, at)).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let only = |pod: &PodNetwork| Some(vec![(IpAddr::from(six(pod)), IpAddr::from(six(pod)))]);
    let guarded = Backend::Endpoints { endpoints: vec![to(&b)], affinity: None, clients: only(&b) };
    test.network.change_services(vec![(frontend, Some(guarded))]).await.unwrap();
    assert!(!reaches(&a, (service(31), 8000)) && reaches(&b, (service(31), 8000)));
    test.network.change_services(vec![(frontend, Some(Backend::Refused))]).await.unwrap();
    refused(Some(&a), at);
    test.end().await;
}

#[tokio::test]
async fn datagrams_leave_an_endpoint_that_is_gone() {
    let test = start(32).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let frontend = inside_service(service(32), Protocol::Udp, 53);
    let socket_in = |pod: &PodNetwork, port| {
        let socket = inside(&pod.netns, || UdpSocket::bind((six(pod), port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    let client = socket_in(&a, 4000);
    let mut heard = [0; 8];
    let mut known = None;
    for (pod, word) in [(&a, b"one"), (&b, b"two")] {
        let server = socket_in(pod, 53);
        let to = endpoints(&[SocketAddr::from((six(pod), 53))]);
        match known {
            None => test.network.replace_services([(frontend, to)].into()).await.unwrap(),
            Some(()) => test.network.change_services(vec![(frontend, Some(to))]).await.unwrap(),
        }
        known = Some(());
        client.send_to(word, (service(32), 53)).unwrap();
        let length = server.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], word);
    }
    test.end().await;
}

#[tokio::test]
async fn policies_hold_for_both_kinds() {
    let test = start(33).await;
    let (a, b, c) = (
        test.network.attach("a").await.unwrap(),
        test.network.attach("b").await.unwrap(),
        test.network.attach("c").await.unwrap(),
    );
    let _open = inside(&b.netns, || [80, 81].map(|port| TcpListener::bind((six(&b), port)).unwrap()));
    let isolate = |peers, ports| {
        let rules = vec![Allow { peers, ports }].into();
        PolicyChange::Isolate(Direction::Ingress, six(&b).into(), Some(rules))
    };
    let members: HashSet<_> =
        [&a].iter().flat_map(|pod| [pod.address.into(), six(pod).into()]).map(Member::Pod).collect();
    let tcp = |port| Ports::Ranges(vec![(Protocol::Tcp, port, port)]);
    let change = async |changes| test.network.change_policies(changes).await.unwrap();
    test.network
        .replace_policies(vec![PolicyChange::Define(2, members), isolate(Peers::Group(2), tcp(80))])
        .await
        .unwrap();
    assert!(reaches(&a, (six(&b), 80)), "a member of the group");
    assert!(!reaches(&a, (six(&b), 81)) && !reaches(&c, (six(&b), 80)));
    change(vec![PolicyChange::Member(2, Member::Pod(six(&c).into()), true)]).await;
    assert!(reaches(&c, (six(&b), 80)));
    let everybody = vec![([0; 4].into(), [255; 4].into()), ([0; 16].into(), [255; 16].into())];
    change(vec![isolate(Peers::Blocks(everybody), Ports::Any)]).await;
    assert!(reaches(&a, (six(&b), 81)) && reaches(&c, (six(&b), 81)));
    let of_c = vec![([10, 0, 0, 0].into(), [10, 0, 0, 9].into()), (six(&c).into(), six(&c).into())];
    change(vec![isolate(Peers::Blocks(of_c), Ports::Any), PolicyChange::Forget(2)]).await;
    assert!(reaches(&c, (six(&b), 81)) && !reaches(&a, (six(&b), 81)));
    test.end().await;
}

#[tokio::test]
async fn ports_of_the_machine_and_held_addresses_are_of_both_kinds() {
    let test = start(34).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    name_itself(&b);
    name_itself_at(&b, six(&b));
    test.network.replace_services(std::collections::HashMap::new()).await.unwrap();
    let port = |address, port| HostPort { address, protocol: Protocol::Tcp, port, pod_port: 80 };
    let elsewhere = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let own = gateway(&test.network).into();
    let ports = vec![port(None, 18_080), port(Some(own), 18_081), port(Some(elsewhere.into()), 18_082)];
    let nowhere = test.network.publish("b", vec![b.address.into(), six(&b).into()], ports).await.unwrap();
    assert_eq!(nowhere.iter().map(|port| port.port).collect::<Vec<_>>(), [18_082]);
    let is_b = |address: IpAddr, port| {
        let expected = if address.is_ipv4() { b.address.into() } else { IpAddr::from(six(&b)) };
        let answer = talk(&a, (address, port));
        assert!(answer.starts_with(&format!("{expected} ")), "{address}:{port}: {answer}");
    };
    is_b(test.network.gateway_address().into(), 18_080);
    is_b(own, 18_080);
    is_b(own, 18_081);
    refused(None, (Ipv6Addr::LOCALHOST, 18_080));
    test.network.release("b").await;
    refused(Some(&a), (own, 18_080));

    let held = Ipv6Addr::from(u128::from(range(3, 34).network()) + 1);
    test.network.hold(vec![held.into()]).await.unwrap();
    let here = TcpListener::bind(("::", 0)).unwrap();
    // The kernel leads to a new address a moment after it has said that it is there.
    let port = here.local_addr().unwrap().port();
    let is_refused = || {
        let outcome = TcpStream::connect_timeout(&(held, port).into(), Duration::from_secs(5));
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    assert!((0..3).any(|_| is_refused()));
    let to_a = endpoints(&[SocketAddr::from((six(&a), 80))]);
    name_itself_at(&a, six(&a));
    test.network.replace_services([(inside_service(held, Protocol::Tcp, 80), to_a)].into()).await.unwrap();
    assert!(TcpStream::connect_timeout(&(held, 80).into(), Duration::from_secs(5)).is_ok());
    test.network.hold(Vec::new()).await.unwrap();
    assert!(TcpListener::bind((held, 0)).is_err(), "the machine has it no more");
    test.end().await;
}

#[tokio::test]
async fn bytes_of_both_kinds_are_one_sum_and_forgotten_with_the_address() {
    let test = start(35).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let server = inside(&b.netns, || UdpSocket::bind((six(&b), 9)).unwrap());
    let (four, other) =
        inside(&a.netns, || (UdpSocket::bind((a.address, 0)).unwrap(), UdpSocket::bind((six(&a), 0)).unwrap()));
    // A link that was made just now may lose what is sent first.
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let arrives = || other.send_to(b"x", (six(&b), 9)).is_ok() && server.recv(&mut [0; 200]).is_ok();
    assert!((0..50).any(|_| arrives()));
    let sent = || test.network.traffic().of(a.address).unwrap().unwrap().cluster_sent;
    let before = sent();
    // Nobody listens for the first one.
    four.send_to(&[0; 100], (b.address, 9)).unwrap();
    other.send_to(&[0; 100], (six(&b), 9)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    server.recv(&mut [0; 200]).unwrap();
    // Headers of IP and UDP, and what is in them.
    assert_eq!(sent() - before, (20 + 8 + 100) + (40 + 8 + 100));
    let of_a = test.network.traffic().of(a.address).unwrap().unwrap();
    assert_eq!(test.network.traffic().read().unwrap()[&a.address], of_a);
    test.network.release("a").await;
    assert_eq!(test.network.traffic().of(a.address).unwrap(), None);
    test.end().await;
}

#[tokio::test]
async fn a_pod_cannot_tell_the_machine_false_ways() {
    let test = start(36).await;
    let pod = test.network.attach("a").await.unwrap();
    let links = std::fs::read_dir("/proc/sys/net/ipv6/conf").unwrap().map(|entry| entry.unwrap().path());
    let own: Vec<_> = links.filter(|link| link.to_string_lossy().contains(&test.instance[..6])).collect();
    assert!(own.len() >= 2, "the bridge and a pod's link: {own:?}");
    for setting in ["accept_ra", "accept_redirects"] {
        for link in &own {
            let value = std::fs::read_to_string(link.join(setting)).unwrap();
            assert_eq!(value.trim(), "0", "{setting} of {}", link.display());
        }
    }
    // Its neighbours are known for good: it is not asked, and cannot answer for others.
    let known = Command::new("ip").args(["-6", "neighbour", "show", &six(&pod).to_string()]).output().unwrap();
    assert!(String::from_utf8(known.stdout).unwrap().contains("PERMANENT"));
    test.end().await;
}
