//! Block devices of the machine in pods.

use std::fs;
use std::process::Command;

use carob_tests::Carob;
use carob_tests::pods::{idle, list, pod, shell_pod};
use serde_json::{Value, json};

/// A file as a block device, as long as it lives.
struct Loop(String);

impl Loop {
    fn of(file: &str) -> Self {
        let output = Command::new("losetup").args(["--find", "--show", file]).output().expect("losetup starts");
        assert!(output.status.success(), "{}", carob_tests::text(&output));
        Self(String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let ended = Command::new("losetup").args(["--detach", &self.0]).status();
        if !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("{} is still there: {ended:?}", self.0);
        }
    }
}

fn claim(name: &str, class: Option<&str>, volume: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": class,
            "volumeName": volume, "resources": {"requests": {"storage": "1Mi"}}}})
}

fn with_device(mut manifest: Value, claim: &str) -> Value {
    manifest["spec"]["volumes"] = json!([{"name": "disk", "persistentVolumeClaim": {"claimName": claim}}]);
    manifest["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "disk", "devicePath": "/dev/disk"}]);
    manifest
}

#[test]
fn a_claim_of_a_device_is_a_device_in_the_pod() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("disk");
    fs::write(&file, vec![0; 1 << 20]).expect("written");
    let device = Loop::of(file.to_str().expect("UTF-8"));
    let carob = Carob::start(&["busybox", "tools"]);
    let node = carob.jsonpath("nodes", ".items[0].metadata.name");
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "local": {"path": device.0}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}});
    let script = "test -b /dev/disk && echo written | dd of=/dev/disk conv=fsync 2>/dev/null && head -c 8 /dev/disk";
    let warnings = carob.apply(&list(&[
        volume,
        claim("disk", Some(""), Some("disk")),
        claim("made", None, None),
        with_device(shell_pod("writer", script), "disk"),
        with_device(pod("waits", &[idle("main")]), "made"),
    ]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    carob.wait_phase("writer", "Succeeded");
    assert_eq!(carob.kubectl(&["logs", "writer"]), "written\n");
    assert!(fs::read(&file).expect("the disk").starts_with(b"written\n"));
    carob.wait_event("made", "does not support block volume provisioning");
    assert_eq!(carob.jsonpath("pod/waits", ".status.phase"), "Pending");
}
