//! Workers on other machines, which here are network namespaces with a link to this one and no more in common with it than
//! the disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use carob_tests::machine::Traces;
use carob_tests::pods::{idle, list, pod, shell_pod};
use carob_tests::{Carob, Setup, binary, eventually, network_octet, text};
use serde_json::{Value, json};

use crate::{asks, machine_gets, nodes, on, ready, server};

/// Another machine.
struct Machine {
    namespace: String,
    link: String,
    /// This machine's address on the network between the two, and the other's.
    here: String,
    there: String,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip (package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", text(&output));
}

impl Machine {
    fn new() -> Self {
        let octet = network_octet();
        let machine = Self {
            namespace: format!("carob-test-{octet}"),
            link: format!("ct{octet}"),
            here: format!("10.213.{octet}.1"),
            there: format!("10.213.{octet}.2"),
        };
        let Self { namespace, link, here, there } = &machine;
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
        ip(&format!("addr add {here}/24 dev {link}"));
        ip(&format!("link set {link} up"));
        for inside in [
            "link set lo up".to_owned(),
            format!("addr add {there}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {here}"),
        ] {
            ip(&format!("-n {namespace} {inside}"));
        }
        machine
    }

    /// The binary, there.
    fn carob(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(binary()).args(arguments).stdin(Stdio::null());
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.link]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

/// A worker on another machine.
struct Worker<'a> {
    machine: &'a Machine,
    dir: PathBuf,
    process: Option<Child>,
}

impl<'a> Worker<'a> {
    fn new(machine: &'a Machine, carob: &Carob, images: &[&str]) -> Self {
        let dir = carob.path("worker");
        fs::create_dir_all(&dir).unwrap();
        let data = dir.join("data");
        for image in images {
            let layout = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/images").join(image);
            let (data, layout) = (data.to_string_lossy(), layout.to_string_lossy());
            let output = carob.carob(&["image", "import", "--data-dir", &data, &layout]);
            assert!(output.status.success(), "importing {image}: {}", text(&output));
        }
        Self { machine, dir, process: None }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let data = self.data();
        let mut all = vec!["worker", "--data-dir", data.to_str().unwrap()];
        all.extend(arguments);
        self.machine.carob(&all)
    }

    /// Tries to join, which must fail; what it says.
    fn refused(&self, arguments: &[&str]) -> String {
        let output: Output = self.command(arguments).output().expect("the binary starts");
        assert!(!output.status.success(), "{arguments:?} is let in: {}", text(&output));
        text(&output)
    }

    fn start(&mut self, arguments: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = self.command(arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.process = Some(child.expect("the binary starts"));
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("a running worker");
        process.kill().expect("SIGKILL can be sent");
        process.wait().expect("it ends");
    }

    fn down(&mut self) -> Output {
        let data = self.data();
        let output = self.machine.carob(&["down", "--grace", "0", "--data-dir", data.to_str().unwrap()]).output();
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
        output.expect("the binary starts")
    }

    fn instance(&self) -> String {
        let text = fs::read(self.data().join("instance.json")).expect("an instance");
        serde_json::from_slice::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Cgroups of containers there.
    fn containers(&self) -> BTreeSet<String> {
        let traces = Traces::of(&self.instance(), &self.data());
        let names = traces.cgroups.iter().filter_map(|path| path.rsplit('/').next());
        names.filter(|name| name.len() == 64).map(str::to_owned).collect()
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the worker's log:\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if self.data().join("instance.json").exists() {
            self.down();
        }
    }
}

fn token(carob: &Carob, name: &str, ttl: &str) -> PathBuf {
    let data = carob.data_dir();
    let output = carob.carob(&["token", "create", "--ttl", ttl, "--data-dir", data.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let path = carob.path(name);
    fs::write(&path, output.stdout).unwrap();
    path
}

#[test]
fn a_worker_joins_by_a_token_and_its_pods_are_like_any_others() {
    let machine = Machine::new();
    let mut carob =
        Carob::start_with(&Setup { images: &["tools", "busybox"], address: Some(&machine.here), ..Setup::default() });
    let gateway = format!("https://{}:{}", machine.here, carob.port());
    let mut worker = Worker::new(&machine, &carob, &["tools"]);
    let good = token(&carob, "token", "1h");
    let join = ["--join", &gateway, "--node-name", "far", "--token-file"];
    let with = |more: &[&str]| -> Vec<String> { join.iter().chain(more).map(ToString::to_string).collect() };
    let refused = |more: &[&str]| {
        let all = with(more);
        worker.refused(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // What is wrong is said.
    let first = nodes(&carob)[0].clone();
    let text = fs::read_to_string(&good).unwrap();
    let wrong = carob.path("wrong");
    fs::write(&wrong, format!("aaaaaa.aaaaaaaaaaaaaaaa{}", &text[23..])).unwrap();
    let said = refused(&[wrong.to_str().unwrap()]);
    assert!(said.contains("does not take the token"), "{said}");
    let short = token(&carob, "short", "1s");
    eventually("a token that has expired is refused", || {
        // Before that, by a name that is taken.
        let said =
            worker.refused(&["--join", &gateway, "--token-file", short.to_str().unwrap(), "--node-name", &first]);
        said.contains("does not take the token")
    });
    fs::write(&wrong, &text[..23]).unwrap();
    let said = refused(&[wrong.to_str().unwrap()]);
    assert!(said.contains("--ca-file"), "{said}");
    fs::write(&wrong, "secret").unwrap();
    let said = refused(&[wrong.to_str().unwrap()]);
    assert!(said.contains("holds no token"), "{said}");
    let said = worker.refused(&["--join", &gateway, "--token-file", good.to_str().unwrap(), "--node-name", &first]);
    assert!(said.contains("there is a node") && said.contains(&first), "{said}");

    let all = with(&[good.to_str().unwrap()]);
    worker.start(&all.iter().map(String::as_str).collect::<Vec<_>>());
    ready(&carob, 2);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"serves": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[
        on(&first, server("near")),
        on("far", server("afar")),
        on(&first, pod("here", &[idle("main")])),
        on("far", pod("there", &[idle("main")])),
        service,
    ]));
    for name in ["near", "afar", "here", "there"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let address = |pod: &str| carob.jsonpath(&format!("pod/{pod}"), ".status.podIP");
    let afar = format!("http://{}:8080/", address("afar"));
    let near = format!("http://{}:8080/", address("near"));
    eventually("there from here", || asks(&carob, "here", &afar).contains("afar"));
    eventually("here from there, and exec over the network", || asks(&carob, "there", &near).contains("near"));
    let port = carob.jsonpath("service/web", ".spec.ports[0].nodePort");
    for from in ["here", "there"] {
        for url in ["http://web.default.svc.cluster.local/".to_owned(), format!("http://{}:{port}/", machine.there)] {
            for server in ["near", "afar"] {
                eventually(&format!("{from} reaches {server} by {url}"), || asks(&carob, from, &url).contains(server));
            }
        }
    }
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "afar"}}, "policyTypes": ["Ingress"], "ingress": []}});
    carob.apply(&policy.to_string());
    eventually("a policy holds there for who is here", || !asks(&carob, "here", &afar).contains("afar"));
    carob.kubectl(&["delete", "networkpolicy", "closed"]);
    eventually("until it goes", || asks(&carob, "here", &afar).contains("afar"));
    // Its port is open for the gateway's machine, and for no pod.
    let door = format!("{}:10250", machine.there);
    assert!(std::net::TcpStream::connect(&door).is_ok(), "the gateway reaches it");
    let knock = format!("nc -w 5 {} 10250 </dev/null && exit 1; exit 0", machine.there);
    carob.apply(&on(&first, shell_pod("knock", &knock)).to_string());
    carob.wait_phase("knock", "Succeeded");

    // Both may die: pods go on, and are known again.
    let ids = |carob: &Carob| {
        carob.kubectl(&[
            "get",
            "pods",
            "afar",
            "there",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].containerID}",
        ])
    };
    let before = ids(&carob);
    worker.kill();
    assert!(machine_gets(&format!("{}:8080", address("afar"))).is_some_and(|answer| answer.contains("afar")));
    carob.kill();
    carob.up(&[]);
    worker.start(&[]);
    eventually("its pods answer", || asks(&carob, "there", &near).contains("near"));
    assert_eq!(ids(&carob), before);

    // What it used is on the bill, once, to the kernel's last count.
    carob.kubectl(&["delete", "pod", "there", "--grace-period=0"]);
    let billed = || -> Vec<Value> {
        let all: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/billing/v1/containers"])).unwrap();
        let all = all["containers"].as_array().unwrap().clone();
        all.into_iter().filter(|container| container["node"] == "far").collect()
    };
    eventually("both containers are on the bill", || billed().len() == 2);
    let down = worker.down();
    assert!(down.status.success(), "{}", carob_tests::text(&down));
    let end = billed();
    assert!(end.iter().all(|container| container["cpuNanoseconds"].as_u64().unwrap() > 0), "{end:?}");
    assert!(carob.kubectl(&["get", "--raw", "/billing/v1/verify"]).contains("\"intact\":true"));
    assert_eq!(Traces::of(&worker.instance(), &worker.data()), Traces::default());
}

#[test]
fn a_worker_that_is_cut_off_is_replaced_and_ends_what_was_replaced_when_it_returns() {
    let machine = Machine::new();
    let carob = Carob::start_with(&Setup {
        images: &["tools"],
        address: Some(&machine.here),
        config: Some("nodeGraceSeconds: 15\n"),
        ..Setup::default()
    });
    let first = nodes(&carob)[0].clone();
    let mut worker = Worker::new(&machine, &carob, &["tools"]);
    let (gateway, good) = (format!("https://{}:{}", machine.here, carob.port()), token(&carob, "token", "1h"));
    worker.start(&["--join", &gateway, "--node-name", "far", "--token-file", good.to_str().unwrap()]);
    ready(&carob, 2);
    carob.kubectl(&["cordon", &first]);
    let labels = json!({"app": "moving"});
    let tolerates =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    carob.apply(
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "moving"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [idle("main")], "tolerations":
                [tolerates("node.kubernetes.io/unreachable"), tolerates("node.kubernetes.io/not-ready")]}}}})
        .to_string(),
    );
    carob.kubectl(&["rollout", "status", "deployment/moving", "--timeout=60s"]);
    carob.kubectl(&["uncordon", &first]);
    let old = carob.kubectl(&["get", "pods", "-l", "app=moving", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(worker.containers().len(), 1);

    ip(&format!("link set {} down", machine.link));
    carob.wait("node/far", "condition=Ready=Unknown");
    let running = ["get", "pods", "-l", "app=moving", "--field-selector=status.phase=Running", "-o"];
    let shown = "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName} {end}";
    let mut running = running.to_vec();
    running.push(shown);
    carob.until(&running, |pods| pods.contains(&format!("={first}")));
    assert_eq!(worker.containers().len(), 1, "it goes on where nobody can tell it to end");

    ip(&format!("link set {} up", machine.link));
    ip(&format!("-n {} route replace default via {}", machine.namespace, machine.here));
    eventually("what was replaced ends there", || worker.containers().is_empty());
    carob.wait("node/far", "condition=Ready=True");
    eventually("and its object goes", || !carob.run(&["get", "pod", &old]).status.success());
}
