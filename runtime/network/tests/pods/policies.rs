//! Policies between pods.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use carob_network::{Allow, Direction, Member, Peers, PodNetwork, PolicyChange, Ports, Protocol};

use crate::{TestNetwork, endpoints, inside, inside_service, services};

/// Whether a connection is made. What is dropped is asked for again after a second: less than that is enough to tell.
fn reaches(from: &PodNetwork, address: Ipv4Addr, port: u16) -> bool {
    let to = SocketAddrV4::new(address, port);
    inside(&from.netns, || TcpStream::connect_timeout(&to.into(), Duration::from_millis(400)).is_ok())
}

fn listen(pod: &PodNetwork, port: u16) -> TcpListener {
    inside(&pod.netns, || TcpListener::bind((pod.address, port)).unwrap())
}

fn isolate(direction: Direction, pod: &PodNetwork, rules: &[(Peers, Ports)]) -> PolicyChange {
    let allow = |(peers, ports): &(Peers, Ports)| Allow { peers: peers.clone(), ports: ports.clone() };
    PolicyChange::Isolate(direction, pod.address.into(), Some(rules.iter().map(allow).collect::<Vec<_>>().into()))
}

fn tcp(first: u16, last: u16) -> Ports {
    Ports::Ranges(vec![(Protocol::Tcp, first, last)])
}

const PODS: u32 = 2;
const NAMED: u32 = 3;

#[tokio::test]
async fn only_what_a_policy_names_gets_in_and_what_is_under_way_stays() {
    let test = TestNetwork::start(11).await;
    let (a, b, c) = (
        test.network.attach("a").await.unwrap(),
        test.network.attach("b").await.unwrap(),
        test.network.attach("c").await.unwrap(),
    );
    let open = [80, 81, 90, 8080].map(|port| listen(&b, port));
    let change = async |changes| test.network.change_policies(changes).await.unwrap();
    test.network.replace_policies(Vec::new()).await.unwrap();
    assert!(reaches(&a, b.address, 80));
    let kept = inside(&a.netns, || TcpStream::connect((b.address, 80)).unwrap());
    let (mut heard, _) = open[0].accept().unwrap();

    change(vec![isolate(Direction::Ingress, &b, &[])]).await;
    assert!(!reaches(&a, b.address, 80) && !reaches(&c, b.address, 80));
    (&kept).write_all(b"on").unwrap();
    heard.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Of those that came before, one may be first in the listener's queue.
    let mut two = [0; 2];
    if heard.read(&mut two).unwrap() == 0 {
        heard = open[0].accept().unwrap().0;
        heard.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        heard.read_exact(&mut two).unwrap();
    }
    assert_eq!(&two, b"on", "a connection that is under way goes on");
    assert!(
        TcpStream::connect_timeout(&SocketAddrV4::new(b.address, 80).into(), Duration::from_secs(5)).is_ok(),
        "the machine is let in"
    );
    assert!(reaches(&b, b.address, 80), "and the pod itself");
    let out = listen(&a, 9000);
    assert!(reaches(&b, a.address, 9000), "it may ask others, and hears their answers");
    drop(out);

    let members = HashSet::from([Member::Pod(a.address.into())]);
    change(vec![
        PolicyChange::Define(PODS, members),
        isolate(Direction::Ingress, &b, &[(Peers::Group(PODS), tcp(80, 90))]),
    ])
    .await;
    assert!(reaches(&a, b.address, 80) && reaches(&a, b.address, 90) && !reaches(&a, b.address, 8080));
    assert!(!reaches(&c, b.address, 80));
    change(vec![
        PolicyChange::Member(PODS, Member::Pod(c.address.into()), true),
        PolicyChange::Member(PODS, Member::Pod(a.address.into()), false),
    ])
    .await;
    assert!(reaches(&c, b.address, 81) && !reaches(&a, b.address, 81));

    let blocks = Peers::Blocks(vec![
        ([0, 0, 0, 0].into(), a.address.into()),
        (c.address.min(Ipv4Addr::BROADCAST).into(), Ipv4Addr::BROADCAST.into()),
    ]);
    change(vec![isolate(Direction::Ingress, &b, &[(blocks, Ports::Any)])]).await;
    assert!(reaches(&a, b.address, 8080) && reaches(&c, b.address, 80));
    let named = HashSet::from([Member::Port(b.address.into(), Protocol::Tcp, 8080)]);
    change(vec![
        PolicyChange::Define(NAMED, named),
        isolate(Direction::Ingress, &b, &[(Peers::Anybody, Ports::Group(NAMED))]),
        PolicyChange::Forget(PODS),
    ])
    .await;
    assert!(reaches(&a, b.address, 8080) && !reaches(&a, b.address, 80));
    change(vec![PolicyChange::Isolate(Direction::Ingress, b.address.into(), None), PolicyChange::Forget(NAMED)]).await;
    assert!(reaches(&a, b.address, 80));
    assert_eq!(policy_objects(&test), 0, "nothing is left of what was");
    test.end().await;
}

/// How many chains and sets of policies there are in the kernel, as nft lists them.
fn policy_objects(test: &TestNetwork) -> usize {
    let listed =
        Command::new("nft").args(["list", "table", "ip", &format!("carob-{}", test.instance)]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8(listed.stdout).unwrap();
    let is_object = |line: &&str| ["chain policy-", "set policy-"].iter().any(|begin| line.trim().starts_with(begin));
    text.lines().filter(is_object).count()
}

#[tokio::test]
async fn egress_is_held_to_where_a_service_leads_and_both_ends_count() {
    let test = TestNetwork::start(12).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let _open = listen(&b, 80);
    let address = Ipv4Addr::from(u32::from(services(12).network()) + 7);
    let frontend = inside_service(address, Protocol::Tcp, 8000);
    let to_b = endpoints(&[SocketAddrV4::new(b.address, 80)]);
    test.network.replace_services([(frontend, to_b)].into()).await.unwrap();
    let b_only = HashSet::from([Member::Pod(b.address.into())]);
    test.network
        .replace_policies(vec![
            PolicyChange::Define(PODS, b_only),
            isolate(Direction::Egress, &a, &[(Peers::Group(PODS), tcp(80, 80))]),
        ])
        .await
        .unwrap();
    let listed = policy_objects(&test);
    assert_eq!(listed, 3, "a chain, a group, a set of ports");
    assert!(reaches(&a, address, 8000), "it is the pod's port that counts, not the Service's");
    assert!(reaches(&a, b.address, 80));
    let to_service = Peers::Blocks(vec![(address.into(), address.into())]);
    test.network.change_policies(vec![isolate(Direction::Egress, &a, &[(to_service, Ports::Any)])]).await.unwrap();
    assert!(!reaches(&a, address, 8000));
    let all = (Peers::Anybody, Ports::Any);
    let changes = vec![isolate(Direction::Egress, &a, &[all]), isolate(Direction::Ingress, &b, &[])];
    test.network.change_policies(changes).await.unwrap();
    assert!(!reaches(&a, b.address, 80), "both ends have to let it through");
    // A worker that starts again knows nothing of what the last one wrote.
    test.network.replace_policies(Vec::new()).await.unwrap();
    assert!(reaches(&a, address, 8000));
    assert_eq!(policy_objects(&test), 0);
    test.end().await;
}

#[tokio::test]
async fn a_pod_more_costs_the_same_however_many_there_are() {
    let test = TestNetwork::start(13).await;
    let pods = |count: u32| (0..count).map(|number| IpAddr::V4((0x0a00_0000 + number).into()));
    let rules: Arc<[Allow]> = Arc::new([Allow { peers: Peers::Group(PODS), ports: tcp(80, 80) }]);
    let whole = std::time::Instant::now();
    let mut all = vec![PolicyChange::Define(PODS, pods(10_000).map(Member::Pod).collect())];
    all.extend(pods(10_000).map(|pod| PolicyChange::Isolate(Direction::Ingress, pod, Some(Arc::clone(&rules)))));
    test.network.replace_policies(all).await.unwrap();
    let whole = whole.elapsed();
    assert_eq!(policy_objects(&test), 3);
    let begin = std::time::Instant::now();
    let new = IpAddr::from([10, 99, 99, 99]);
    let changes = vec![
        PolicyChange::Member(PODS, Member::Pod(new), true),
        PolicyChange::Isolate(Direction::Ingress, new, Some(rules)),
    ];
    test.network.change_policies(changes).await.unwrap();
    let one = begin.elapsed();
    assert!(one * 4 < whole, "one of ten thousand: {one:?}, all of them: {whole:?}");
    test.end().await;
}

#[tokio::test]
async fn what_was_under_way_with_a_pod_is_not_with_the_next_one_that_has_its_address() {
    let test = TestNetwork::start(21).await;
    let (a, b) = (test.network.attach("a").await.unwrap(), test.network.attach("b").await.unwrap());
    let socket_in = |pod: &PodNetwork, port| {
        let socket = inside(&pod.netns, || UdpSocket::bind((pod.address, port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    };
    let (client, server) = (socket_in(&a, 4000), socket_in(&b, 9));
    test.network.replace_policies(Vec::new()).await.unwrap();
    let arrives = || {
        client.send_to(b"x", (b.address, 9)).unwrap();
        server.recv_from(&mut [0; 4]).is_ok()
    };
    assert!(arrives());
    server.send_to(b"y", (a.address, 4000)).unwrap();
    client.recv(&mut [0; 4]).unwrap();
    test.network.change_policies(vec![isolate(Direction::Ingress, &b, &[])]).await.unwrap();
    assert!(arrives(), "what is under way goes on");
    test.network.release("b").await;
    assert!(!arrives(), "a flow outlives the pod");
    test.end().await;
}
