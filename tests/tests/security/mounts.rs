//! Where mounts go: images whose own directories are links, volumes whose content changes while a container is made, and
//! volumes on the places that the runtime itself needs.

use std::collections::BTreeMap;

use carob_tests::pods::{pod, shell};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

use crate::bait::{Bait, CONTENT};
use crate::layout::{Tar, import, over_busybox};

fn mounted(mut container: Value, mounts: &Value) -> Value {
    container["volumeMounts"] = mounts.clone();
    container
}

fn with_volumes(mut manifest: Value, names: &[&str]) -> Value {
    manifest["spec"]["volumes"] = names.iter().map(|name| json!({"name": name, "emptyDir": {}})).collect();
    manifest
}

/// How the containers of a pod are: their states' reasons and messages, by name.
fn states(carob: &Carob, pod: &str) -> BTreeMap<String, String> {
    let status = carob.get(&["pod", pod])["status"].clone();
    let containers = status["containerStatuses"].as_array().cloned().unwrap_or_default();
    let state = |state: &Value| {
        let of = |kind: &str| {
            let reason = state[kind]["reason"].as_str()?;
            Some(format!("{reason}: {}", state[kind]["message"].as_str().unwrap_or_default()))
        };
        of("waiting").or_else(|| of("terminated")).unwrap_or_else(|| "Running".to_owned())
    };
    containers.iter().map(|c| (c["name"].as_str().unwrap_or_default().to_owned(), state(&c["state"]))).collect()
}

fn settled(carob: &Carob, pod: &str) -> bool {
    let all = states(carob, pod);
    let on_its_way =
        |state: &String| ["Running", "ContainerCreating", "PodInitializing"].iter().any(|word| state.starts_with(word));
    !all.is_empty() && !all.values().any(on_its_way)
}

/// The runtime makes `/dev/fd` and its like, and removes `/dev/ptmx`, before the container has its root: where `/dev` leads
/// to the runtime's own place, and from there by `/proc/PID/root` to the machine, they must not be made.
#[test]
fn what_the_runtime_makes_in_a_container_is_made_nowhere_else() {
    let carob = Carob::start(&["busybox"]);
    let bait = Bait::new();
    let host = bait.path().to_owned();
    // A process that the runtime may look into; which it is a real attacker would try out.
    let out = format!("/proc/{}/root{host}", carob.pid());
    std::fs::write(format!("{host}/ptmx"), "not a terminal").expect("ours");
    let bait = bait.again();
    let dirs = |paths: &[&str]| {
        paths.iter().fold(Tar::default(), |tar, path| {
            let mut whole = String::new();
            path.split('/').filter(|part| !part.is_empty()).fold(tar, |tar, part| {
                whole = format!("{whole}{part}/");
                tar.dir(&whole)
            })
        })
    };
    let look = "ls -a /dev /m 2>/dev/null; cat /dev/bait /m/bait 2>/dev/null; echo x > /dev/touched; echo end";
    let run = |image: &str, mounts: &Value| {
        let mut container = mounted(shell("main", look), mounts);
        container["image"] = json!(image);
        container["command"] = json!(["/bin/busybox", "sh", "-c", format!("export PATH=/bin; {look}")]);
        container
    };
    // The image's directory is where the runtime looks for /dev; the link leads elsewhere for the kernel.
    let mut names = Vec::new();
    let staged: Vec<String> = (0..4).map(|n| format!("/m{n}/x")).collect();
    let images: Vec<(String, Tar)> = [
        ("dev-magic".to_owned(), dirs(&[&out]).symlink("dev", &out)),
        ("dev-relative".to_owned(), dirs(&[&out]).symlink("dev", &format!("..{out}"))),
    ]
    .into_iter()
    .chain(staged.iter().enumerate().map(|(n, path)| (format!("dev-staged{n}"), dirs(&[path]).symlink("dev", path))))
    .chain([
        ("root-link".to_owned(), Tar::default().symlink("r", "/")),
        ("root-dot".to_owned(), Tar::default().symlink("r", ".")),
        ("proc-link".to_owned(), Tar::default().symlink("r", "/proc")),
        ("dev-link".to_owned(), Tar::default().symlink("r", "/dev")),
    ])
    .collect();
    let prepare = format!(
        "ln -s {out} /v/x; ln -s {out} /v/dev; ln -s / /v/inner; mkdir -p /v/proc /v/sys /v/etc; ln -s {out} /v/self; exit 0"
    );
    for (name, layer) in images {
        let (taken, said) = import(&carob, &over_busybox(&carob, &name, vec![layer], &json!({})));
        assert!(taken, "{name} is odd, but an image: {said}");
        for (suffix, place) in [("v", "/v"), ("proc", "/proc"), ("link", "/r"), ("dev", "/dev")] {
            let pod_name = format!("{name}-{suffix}");
            let mounts = json!([{"name": "v", "mountPath": place}]);
            let mut manifest = with_volumes(pod(&pod_name, &[run(&name, &mounts)]), &["v"]);
            let init = mounted(shell("prepare", &prepare), &json!([{"name": "v", "mountPath": "/v"}]));
            manifest["spec"]["initContainers"] = json!([init]);
            carob.apply(&manifest.to_string());
            names.push(pod_name);
        }
    }
    // A second volume inside of the first, whose name there is a link to the root or to the runtime's places.
    for target in ["/", "/proc", "/dev", "/sys", "/proc/sys", "/proc/1/root", "/dev/pts"] {
        let pod_name = format!("nested{}", target.replace('/', "-")).trim_end_matches('-').to_owned();
        let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v/in"}]);
        let mut manifest = with_volumes(pod(&pod_name, &[run("busybox", &mounts)]), &["v", "w"]);
        // The second one has all that the runtime looks for in a root.
        let script = format!(
            "ln -s {target} /v/in; ln -s {out} /w/dev; ln -s {out} /w/x; cd /w; \
             mkdir -p etc bin proc/self .{out}/shm .{out}/pts .{out}/mqueue var/run/secrets/kubernetes.io/serviceaccount; \
             touch etc/hosts etc/hostname etc/resolv.conf .{out}/termination-log; cp /bin/busybox bin/; ln -s busybox bin/sh; exit 0"
        );
        let both = json!([{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}]);
        manifest["spec"]["initContainers"] = json!([mounted(shell("prepare", &script), &both)]);
        carob.apply(&manifest.to_string());
        names.push(pod_name);
    }
    eventually("all have ended or been refused", || names.iter().all(|name| settled(&carob, name)));
    for name in &names {
        let state = states(&carob, name).remove("main").unwrap_or_default();
        let printed = if state.starts_with("Completed") { carob.kubectl(&["logs", name]) } else { String::new() };
        println!("{name}: {state} {}", printed.replace('\n', " "));
        assert!(!printed.contains(CONTENT), "{name} reads the machine's files: {printed}");
    }
    bait.assert_untouched("what the runtime makes in a container");
    assert!(!carob.log().contains("panicked"));
}
