//! What pods receive and send is on the bill, to the byte: with others of the cluster, and with the world outside.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use carob_tests::neighbour::{Machine, in_network_of};
use carob_tests::pods::{idle, list, pod, tools};
use carob_tests::{Carob, Setup, eventually, text};
use serde_json::{Value, json};

/// A byte that leaves the cluster costs a millionth; nothing else costs anything.
const PRICES: &str = "currency: EUR\nvcpuSecond: '0'\ngibSecond: '0'\ninternetSentGib: '1073.741824'\n";

/// Sends so many packets of so many bytes, and gets as many back.
fn ping(carob: &Carob, from: &str, to: &str, count: u64, bytes: u64) -> u64 {
    // Without the headers of IP and ICMP.
    let (packets, size) = (count.to_string(), (bytes - 28).to_string());
    carob.kubectl(&["exec", from, "--", "ping", "-c", &packets, "-i", "0.2", "-W", "5", "-s", &size, to]);
    count * bytes
}

fn traffic(carob: &Carob, pod: &str) -> Value {
    carob.bill(&["--pod", pod])["total"]["traffic"].clone()
}

fn same_both_ways(internet: u64, cluster: u64) -> Value {
    json!({"internetReceivedBytes": internet, "internetSentBytes": internet,
        "clusterReceivedBytes": cluster, "clusterSentBytes": cluster})
}

/// The network namespace of a pod's container.
fn namespace_of(carob: &Carob, pod: &str) -> String {
    let uid = carob.jsonpath(&format!("pod/{pod}"), ".metadata.uid");
    let id = carob.jsonpath(&format!("pod/{pod}"), ".status.containerStatuses[0].containerID");
    let group = format!("carob-{}/pod{uid}/{}", carob.instance(), id.trim_start_matches("carob://"));
    let read = |hierarchy: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{hierarchy}{group}/cgroup.procs"));
    let processes = read("cpu/").or_else(|_| read("")).expect("the container's cgroup");
    format!("/proc/{}/ns/net", processes.lines().next().expect("a process"))
}

#[test]
fn bytes_are_billed_exactly_whoever_dies_and_what_leaves_the_cluster_has_its_price() {
    let outside = Machine::new();
    let prices = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(prices.path(), PRICES).unwrap();
    let config = format!("priceBook: {}\n", prices.path().display());
    let mut carob = Carob::start_with(&Setup { images: &["tools"], config: Some(&config), ..Setup::default() });
    let mut host = pod("host", &[idle("main")]);
    host["spec"]["hostNetwork"] = json!(true);
    carob.apply(&list(&[pod("client", &[idle("main")]), pod("server", &[idle("main")]), host]));
    for name in ["client", "server", "host"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let server = carob.jsonpath("pod/server", ".status.podIP");
    let cluster = ping(&carob, "client", &server, 5, 1_000);
    let mut internet = ping(&carob, "client", &outside.there, 3, 500);
    assert_eq!(traffic(&carob, "client"), same_both_ways(internet, cluster));
    assert_eq!(traffic(&carob, "server"), same_both_ways(0, cluster));

    // The kernel counts on while nobody reads.
    let echo: SocketAddr = outside.inside(|| {
        let socket = UdpSocket::bind((outside.there.as_str(), 0)).unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2_000];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], peer);
            }
        });
        address
    });
    let namespace = namespace_of(&carob, "client");
    carob.kill();
    in_network_of(&namespace, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for _ in 0..10 {
            socket.send_to(&[0; 1_000], echo).unwrap();
            assert_eq!(socket.recv(&mut [0; 2_000]).unwrap(), 1_000);
        }
    });
    internet += 10 * 1_028;
    carob.up(&[]);
    eventually("the pod is known again", || traffic(&carob, "client") == same_both_ways(internet, cluster));

    // The last bytes of a life, too: of a pod that is deleted, and of one that is stopped with all others.
    internet += ping(&carob, "client", &outside.there, 1, 300);
    carob.kubectl(&["delete", "pod", "client", "--grace-period=0"]);
    assert_eq!(traffic(&carob, "client"), same_both_ways(internet, cluster));
    let last = ping(&carob, "server", &outside.there, 1, 700);
    carob.down();
    carob.up(&[]);
    assert_eq!(traffic(&carob, "server"), same_both_ways(last, cluster));

    let bill = carob.bill(&["--pod", "client"]);
    assert_eq!(bill["total"]["cost"], format!("{}.{:06}000", internet / 1_000_000, internet % 1_000_000));
    assert_eq!(bill["total"]["containers"], 1, "a network is no container");
    assert_eq!(bill["rows"].as_array().unwrap().len(), 1);
    let sum: u64 = carob.bill(&["--pod", "client", "--step", "1s"])["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["traffic"]["internetSentBytes"].as_u64())
        .sum();
    assert_eq!(sum, internet, "steps add up");

    // Nobody can tell a pod on the host's network from the host: that isn't zero.
    assert_eq!(traffic(&carob, "host"), Value::Null);
    let kubeconfig = carob.kubeconfig();
    let table = carob.carob(&["bill", "--kubeconfig", kubeconfig.to_str().unwrap()]);
    let table = text(&table);
    assert!(table.contains("INTERNET-OUT") && table.contains(&internet.to_string()), "{table}");
    let of_host: Vec<&str> = table.lines().find(|line| line.contains(" host ")).unwrap().split_whitespace().collect();
    assert_eq!(of_host.iter().filter(|cell| **cell == "-").count(), 4, "{table}");
    let csv = carob.carob(&["bill", "--kubeconfig", kubeconfig.to_str().unwrap(), "-o", "csv"]);
    assert!(text(&csv).lines().next().is_some_and(|header| header.contains("internet-sent-bytes")), "{}", text(&csv));
    assert!(carob.kubectl(&["get", "--raw", "/billing/v1/verify"]).contains("\"intact\":true"));
}

#[test]
fn what_a_pod_fetches_by_a_service_is_the_clusters_and_what_it_fetches_outside_is_not() {
    const BYTES: usize = 8 << 20;
    let outside = Machine::new();
    let carob = Carob::start(&["tools"]);
    let mut server = pod("server", &[tools("main", &["http-server"])]);
    server["metadata"]["labels"] = json!({"app": "web"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[server, pod("inward", &[idle("main")]), pod("outward", &[idle("main")]), service]));
    for name in ["server", "inward", "outward"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let fetched = |from: &str, url: &str| {
        let output = carob.run(&["exec", from, "--", "sh", "-c", &format!("carob-tools get '{url}' | wc -c")]);
        String::from_utf8_lossy(&output.stdout).trim().parse::<usize>().unwrap_or(0)
    };
    eventually("the service answers", || {
        fetched("inward", &format!("http://web.default.svc.cluster.local/?bytes={BYTES}")) >= BYTES
    });
    let port = outside.inside(|| {
        let listener = std::net::TcpListener::bind((outside.there.as_str(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            use std::io::{BufRead, BufReader, Write};
            let (mut stream, _) = listener.accept().unwrap();
            // All of the request: a socket that is closed with something unread is reset, and what was sent is lost.
            let request = BufReader::new(&stream).lines().map(Result::unwrap);
            assert!(request.take_while(|line| !line.is_empty()).count() > 0);
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n").unwrap();
            stream.write_all(&vec![b'x'; BYTES]).unwrap();
        });
        port
    });
    assert_eq!(fetched("outward", &format!("http://{}:{port}/", outside.there)), BYTES);
    let of = |pod: &str, field: &str| traffic(&carob, pod)[field].as_u64().unwrap();
    let about = |bytes: u64| (BYTES as u64..BYTES as u64 * 3 / 2).contains(&bytes);
    let all = || traffic(&carob, "outward");
    assert!(about(of("outward", "internetReceivedBytes")), "{}", all());
    assert!((1..BYTES as u64 / 4).contains(&of("outward", "internetSentBytes")), "{}", all());
    assert_eq!((of("outward", "clusterReceivedBytes"), of("outward", "clusterSentBytes")), (0, 0));
    assert_eq!((of("inward", "internetReceivedBytes"), of("inward", "internetSentBytes")), (0, 0));
    assert!(of("inward", "clusterReceivedBytes") >= BYTES as u64, "{}", traffic(&carob, "inward"));
    assert_eq!(of("server", "clusterSentBytes") / BYTES as u64, of("inward", "clusterReceivedBytes") / BYTES as u64);
}
