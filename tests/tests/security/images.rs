//! Images whose files are traps: links where the runtime mounts things, entries that unpack elsewhere.

use carob_tests::pods::pod;
use carob_tests::{Carob, text};
use serde_json::{Value, json};

use crate::bait::{Bait, CONTENT};
use crate::layout::{Tar, import, over_busybox};

/// Tells where the container's own places really are, then tries what masks and read-only mounts are for.
const LOOK: &str = "cat /proc/1/cmdline >/dev/null || echo no-proc; \
    for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do [ -e $f ] && (: >> $f) 2>/dev/null && echo OPEN $f; done; \
    head -c 1 /proc/kcore | grep -q . && echo OPEN kcore; ls /sys/firmware | grep -q . && echo OPEN firmware; \
    (: >> /sys/kernel/uevent_helper) 2>/dev/null && echo OPEN uevent; \
    echo x > /data/written; echo x > /dev/written; cat /data/bait /work/bait /dev/bait ./bait 2>/dev/null; id -u; echo end";

#[test]
fn links_in_an_image_lead_nowhere_outside_of_it() {
    let carob = Carob::start(&["busybox"]);
    let bait = Bait::new();
    let host = bait.path().to_owned();
    let relative = format!("../../../../../../../..{host}");
    let link = |from: &str, to: &str| Tar::default().symlink(from, to);
    let inside = &host[1..];
    let images: Vec<(&str, Tar, Value)> = vec![
        ("proc-away", link("proc", &host), json!({})),
        ("proc-relative", link("proc", &relative), json!({})),
        ("proc-inside", Tar::default().dir("other/").symlink("proc", "other"), json!({})),
        ("proc-self", link("proc", "dev/fd"), json!({})),
        ("sys-away", link("sys", &host), json!({})),
        ("sys-proc", link("sys", "/proc"), json!({})),
        ("dev-away", link("dev", &host), json!({})),
        ("dev-proc", link("dev", "/proc/self/fd"), json!({})),
        (
            "dev-shm",
            Tar::default().dir("dev/").symlink("dev/shm", &host).symlink("dev/null", "/proc/sysrq-trigger"),
            json!({}),
        ),
        ("dev-pts", Tar::default().dir("dev/").symlink("dev/pts", "/proc").symlink("dev/ptmx", &host), json!({})),
        ("dev-console", Tar::default().dir("dev/").symlink("dev/console", "/proc/sys/kernel/core_pattern"), json!({})),
        ("etc-away", link("etc", &host), json!({})),
        (
            "etc-files",
            Tar::default()
                .dir("etc/")
                .symlink("etc/hosts", &format!("{host}/bait"))
                .symlink("etc/resolv.conf", &format!("{host}/new"))
                .symlink("etc/hostname", "/proc/sysrq-trigger"),
            json!({}),
        ),
        ("data-away", link("data", &host), json!({})),
        ("data-relative", link("data", &relative), json!({})),
        ("data-magic", link("data", &format!("/proc/1/root{host}")), json!({})),
        ("data-cgroup", link("data", "/sys/fs/cgroup"), json!({})),
        ("data-proc", link("data", "/proc/sys"), json!({})),
        ("work-away", link("work", &relative), json!({"WorkingDir": "/work"})),
        ("work-fd", link("work", "/proc/self/fd/7/../../.."), json!({"WorkingDir": format!("/work/{inside}")})),
        (
            "user-away",
            Tar::default().dir("etc/").symlink("etc/passwd", &format!("{host}/passwd")),
            json!({"User": "lured"}),
        ),
    ];
    for (name, layer, config) in images {
        let path = over_busybox(&carob, name, vec![layer], &config);
        let (taken, said) = import(&carob, &path);
        assert!(taken, "{name} is odd, but an image: {said}");
        let mut container = json!({
            "name": "main", "image": name, "imagePullPolicy": "IfNotPresent", "command": ["/bin/busybox", "sh", "-c", format!("export PATH=/bin:/usr/bin; {LOOK}")],
            "volumeMounts": [{"name": "v", "mountPath": "/data"}],
        });
        if name == "dev-console" {
            container["tty"] = json!(true);
        }
        let mut manifest = pod(name, &[container]);
        manifest["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        carob.apply(&manifest.to_string());
    }
    let summary = "jsonpath={range .items[*]}{.metadata.name} {.status.phase} {.status.containerStatuses[0].state.terminated.reason}{.status.containerStatuses[0].state.waiting.reason}\n{end}";
    let settled = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(
            words.as_slice(),
            [_, "Succeeded" | "Failed", ..]
                | [_, _, "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError"]
        )
    };
    let pods = carob.until(&["get", "pods", "-o", summary], |seen| seen.lines().all(settled));
    for line in pods.lines() {
        let name = line.split_whitespace().next().expect("a name");
        if line.contains("StartError")
            || line.contains("Config")
            || line.contains("Create")
            || line.contains("RunContainer")
        {
            // Refused: as good. Its log may not exist.
            continue;
        }
        let printed = carob.kubectl(&["logs", name]);
        assert!(!printed.contains("OPEN"), "{name}: {printed}");
        assert!(!printed.contains(CONTENT), "{name} reads the machine's files: {printed}");
        assert!(!printed.contains("4242"), "{name}'s user is looked up on the machine: {printed}");
        assert!(!printed.contains("no-proc"), "{name} runs without /proc: {printed}");
        assert!(printed.contains("end"), "{name}: {printed}");
    }
    let ran = pods.lines().filter(|line| line.contains("Completed")).count();
    assert!(ran >= 4, "links to what is in the image do no harm: {pods}");
    bait.assert_untouched("an image's link");

    // Terminals are asked for by exec as well, of a /dev that may be anything.
    for name in ["dev-pts", "dev-away"] {
        let mut manifest = pod(
            &format!("{name}-tty"),
            &[json!({
                "name": "main", "image": name, "imagePullPolicy": "IfNotPresent", "command": ["/bin/busybox", "sleep", "3600"],
            })],
        );
        manifest["metadata"]["labels"] = json!({});
        carob.apply(&manifest.to_string());
        let pod = format!("{name}-tty");
        carob.until(&["get", "pod", &pod, "-o", "jsonpath={.status.phase}"], |seen| seen != "Pending");
        carob.run(&["exec", "-t", &pod, "--", "/bin/busybox", "true"]);
    }
    bait.assert_untouched("an exec's terminal");
    assert!(!carob.log().contains("panicked"));
}

#[test]
fn archives_unpack_nothing_outside_of_their_image() {
    let carob = Carob::start(&["busybox"]);
    let bait = Bait::new();
    let host = bait.path().to_owned();
    let up = format!("{}{}", "../".repeat(12), &host[1..]);
    let tar = Tar::default;
    let images: Vec<(&str, Vec<Tar>)> = vec![
        ("dotdot", vec![tar().file(&format!("{up}/pwned"), b"x")]),
        ("dotdot-inside", vec![tar().dir("a/").file(&format!("a/{up}/pwned"), b"x")]),
        ("absolute", vec![tar().file(&format!("{host}/pwned"), b"x")]),
        ("hard-link-absolute", vec![tar().hard_link("a", &format!("{host}/bait"))]),
        ("hard-link-up", vec![tar().hard_link("a", &format!("{up}/bait"))]),
        ("hard-link-then-write", vec![tar().hard_link("a", &format!("{host}/bait")).file("a", b"overwritten")]),
        ("through-link", vec![tar().symlink("d", &host).file("d/pwned", b"x")]),
        ("through-link-of-another-layer", vec![tar().symlink("d", &host), tar().file("d/pwned", b"x")]),
        ("through-two-links", vec![tar().symlink("e", "/").symlink("d", &format!("e{host}")).file("d/pwned", b"x")]),
        ("overwrite-through-link", vec![tar().symlink("f", &format!("{host}/bait")).file("f", b"overwritten")]),
        ("hard-link-through-link", vec![tar().symlink("d", &host).hard_link("h", "d/bait").file("h", b"overwritten")]),
        ("whiteout-through-link", vec![tar().symlink("d", &host), tar().file("d/.wh.bait", b"")]),
        ("opaque-through-link", vec![tar().symlink("d", &host), tar().file("d/.wh..wh..opq", b"")]),
        ("whiteout-up", vec![tar().file(&format!("{up}/.wh.bait"), b"")]),
        ("whiteout-of-dotdot", vec![tar().dir("d/").file("d/.wh...", b"")]),
        ("directory-over-link", vec![tar().symlink("d", &host), tar().dir("d/").file("d/pwned", b"x")]),
        ("chmod-through-link", vec![tar().symlink("d", &host).dir("d/")]),
    ];
    let mut taken = Vec::new();
    for (name, layers) in images {
        let path = over_busybox(&carob, name, layers, &json!({}));
        let (ok, said) = import(&carob, &path);
        bait.assert_untouched(name);
        assert!(ok || said.contains("is refused: "), "{name} is refused with a reason: {said}");
        if ok {
            taken.push(name);
        }
    }
    // What was taken is contained as an image too: the machine's file isn't in it.
    for name in &taken {
        let look = "cat /a /d/bait /f /h 2>/dev/null; true";
        let container =
            json!({"name": "main", "image": name, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", look]});
        carob.apply(&pod(name, &[container]).to_string());
    }
    for name in &taken {
        carob.wait_phase(name, "Succeeded");
        let printed = carob.kubectl(&["logs", name]);
        assert!(!printed.contains(CONTENT), "{name} holds the machine's file: {printed}");
    }
    bait.assert_untouched("a container of such an image");

    // Layouts whose own names lead out: digests that are paths, and blobs that are links.
    let path = over_busybox(&carob, "blob-link", vec![tar().file("x", b"x")], &json!({}));
    let index: Value =
        serde_json::from_slice(&std::fs::read(path.join("index.json")).expect("an index")).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest").to_owned();
    let mut lying = index.clone();
    lying["manifests"][0]["digest"] = json!(format!("sha256:{}", format!("../../../../../../..{host}/bait")));
    std::fs::write(path.join("index.json"), lying.to_string()).expect("written");
    let (ok, said) = import(&carob, &path);
    assert!(!ok && !said.contains(CONTENT), "a digest that is a path: {said}");
    std::fs::write(path.join("index.json"), index.to_string()).expect("written");
    let blob = path.join("blobs").join(digest.replace(':', "/"));
    std::fs::remove_file(&blob).expect("a blob");
    std::os::unix::fs::symlink(format!("{host}/bait"), &blob).expect("a link");
    let (ok, said) = import(&carob, &path);
    assert!(!ok && !said.contains(CONTENT), "a blob that is a link: {said}");
    bait.assert_untouched("a layout");
    let left = carob.carob(&["image", "ls", "--data-dir", &carob.data_dir().to_string_lossy()]);
    assert!(!text(&left).contains("blob-link"), "{}", text(&left));
    assert!(!carob.log().contains("panicked"));
}

#[test]
fn an_image_with_a_user_beyond_the_pods_own_gets_the_machines() {
    let carob = Carob::start(&["busybox"]);
    let (taken, said) = import(&carob, &over_busybox(&carob, "far", vec![], &json!({"User": "70000"})));
    assert!(taken, "{said}");
    let asks = |name: &str, host_users: Option<bool>| {
        let main = json!({"name": "main", "image": "far", "command": ["sh", "-c", "id -u; sleep 3600"],
            "imagePullPolicy": "Never"});
        let mut manifest = pod(name, &[main]);
        manifest["spec"]["hostUsers"] = json!(host_users);
        manifest
    };
    carob.apply(&carob_tests::pods::list(&[asks("unasked", None), asks("asked", Some(false))]));
    assert_eq!(carob.until(&["logs", "unasked"], |said| said.ends_with('\n')), "70000\n");
    let events = carob.kubectl(&["get", "events", "--field-selector=involvedObject.name=unasked,reason=HostUsers"]);
    assert!(events.contains("gets the node's users, not its own"), "{events}");
    carob
        .until(&["get", "pod", "asked", "-o", "jsonpath={..message}"], |said| said.contains("not among the pod's own"));
}
