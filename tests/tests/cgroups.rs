//! A pod from its start to its bill, held against its cgroups. It needs little of a slow machine: `make test-vm` runs it
//! where version 2 is all there is.

use carob_tests::cgroups::{Counter, container_cgroup, cpu_limit, memory_limit, pod_cgroup, read_first, unified};
use carob_tests::machine::Traces;
use carob_tests::pods::shell_pod;
use carob_tests::{Carob, eventually, text};
use serde_json::json;

#[test]
fn a_pods_limits_its_want_of_memory_and_its_bill_are_its_cgroups() {
    let mut carob = Carob::start(&["busybox"]);
    let mut manifest =
        shell_pod("held", "until [ -e /tmp/grow ]; do sleep 0.1; done; exec tail -c 200000000 /dev/zero");
    manifest["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "300m", "memory": "32Mi"}});
    carob.start_pod(&manifest.to_string(), "held");

    let (container, pod) = (container_cgroup(&carob, "cpu", "held"), pod_cgroup(&carob, "cpu", "held"));
    let counter = Counter::of(&carob, "held");
    let in_memory = container_cgroup(&carob, "memory", "held");
    for group in [&container, &pod] {
        assert_eq!(cpu_limit(group), "30000 100000");
        let weight = read_first(group, &["cpu.weight", "cpu.shares"]);
        assert_eq!(weight, if unified() { "12" } else { "307" }, "of the request, which is the limit");
    }
    for group in [&in_memory, in_memory.parent().expect("the pod's")] {
        assert_eq!(memory_limit(group), (32 << 20).to_string());
    }
    let more = json!({"cpu": "300m", "memory": "40Mi"});
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": {"requests": more, "limits": more}}]}});
    let resize = ["patch", "pod", "held", "--subresource=resize", "--type=strategic", "-p", &patch.to_string()];
    let output = carob.run(&resize);
    assert!(output.status.success(), "{}", text(&output));
    for group in [&in_memory, in_memory.parent().expect("the pod's")] {
        eventually("there is more memory", || memory_limit(group) == (40 << 20).to_string());
    }

    let last = counter.last();
    let look = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes
        cat /proc/self/cgroup; touch /tmp/grow";
    let seen = carob.kubectl(&["exec", "held", "--", "sh", "-c", look]);
    let (limit, own) = seen.split_once('\n').expect("two lines and more");
    assert_eq!(limit, (40 << 20).to_string(), "what it sees of itself");
    assert!(own.lines().all(|line| line.ends_with(":/")), "its cgroup looks like the root: {own}");
    carob.wait_phase("held", "Failed");
    let state = carob.get(&["pod", "held"])["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{state}");

    carob.kubectl(&["delete", "pod", "held"]);
    let last = last.join().expect("the last reading");
    assert_eq!(carob.bill(&["--pod", "held"])["total"]["cpuNanoseconds"], last);
    assert!(!pod.exists());
    let instance = carob.instance();
    carob.down();
    eventually("nothing is left on the machine", || Traces::of(&instance, &carob.data_dir()).is_empty());
}
