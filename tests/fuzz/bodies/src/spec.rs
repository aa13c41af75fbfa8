//! What a pod becomes: for every valid spec, an OCI specification in which nothing is open that the spec doesn't open.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use carob_api::decode::{FieldValidation, decode_json};
use carob_api::validation::metadata;
use carob_sandbox::{ALL_CAPABILITIES, ContainerConfig, DEFAULT_CAPABILITIES};
use serde_json::{Map, Value, json};

use crate::objects;
use crate::source::Source;

/// An arbitrary pod, if it is valid, made into specifications.
pub fn spec(data: &[u8]) {
    specified(data);
}

/// How many specifications come of an input.
pub fn specified(data: &[u8]) -> usize {
    check(&pod(&mut Source::new(data)))
}

fn check(sent: &Value) -> usize {
    let kind = objects::kind_named("Pod");
    let Ok(decoded) = decode_json(kind, sent.to_string().as_bytes(), FieldValidation::Strict) else { return 0 };
    let mut object = decoded.value;
    kind.default(&mut object);
    kind.prepare_create(&mut object);
    kind.default(&mut object);
    if !metadata::validate_create(kind, &object).is_empty() || !kind.validate(&object).is_empty() {
        return 0;
    }
    // One place for all rounds of a thread: making and removing it takes longer than the round.
    thread_local!(static PLACE: tempfile::TempDir = tempfile::tempdir().expect("a directory"));
    let place = PLACE.with(|place| place.path().to_owned());
    let layer = place.join("layer");
    if !layer.exists() {
        fs::create_dir_all(layer.join("etc")).expect("a directory");
        fs::write(layer.join("etc/passwd"), "web:x:33:33::/:/bin/sh\n").expect("a file");
    }
    let config = carob_image::ImageConfig { entrypoint: vec!["/program".to_owned()], ..Default::default() };
    let image = carob_image::fuzzing::image(vec![layer.clone()], config);
    let work = place.join("work");
    let (sandbox, containers) =
        carob_worker::fuzzing::containers(&object, &work, &image).expect("what is valid is a pod");
    let spec = &object["spec"];
    let mut specified = 0;
    let all = ["initContainers", "containers"].iter().flat_map(|list| spec[list].as_array().into_iter().flatten());
    for (asked, (name, made)) in all.zip(&containers) {
        assert_eq!(asked["name"], name.as_str());
        // What waits with a reason has no specification.
        let Ok(made) = made else { continue };
        // Nor has one whose profile isn't there, which only its creation shows.
        if matches!(&made.seccomp, carob_sandbox::Seccomp::Localhost(profile) if !profile.exists()) {
            continue;
        }
        let oci = carob_sandbox::fuzzing::spec(&sandbox, made).expect("what is configured can be specified");
        Case { spec, asked, made, oci: &oci, work: &work, layer: &layer }.hold();
        specified += 1;
    }
    specified
}

struct Case<'a> {
    spec: &'a Value,
    asked: &'a Value,
    made: &'a ContainerConfig,
    oci: &'a Value,
    work: &'a Path,
    layer: &'a Path,
}

impl Case<'_> {
    /// All that was promised.
    fn hold(&self) {
        self.namespaces();
        self.privileges();
        self.filter_and_masks();
        self.files();
    }

    fn said(&self) -> String {
        format!("{}\nof {}\nbecame {}", self.asked, self.spec, self.oci)
    }

    /// A field of the container's securityContext, or else of the pod's.
    fn security(&self, field: &str) -> &Value {
        let own = &self.asked["securityContext"][field];
        if own.is_null() { &self.spec["securityContext"][field] } else { own }
    }

    fn privileged(&self) -> bool {
        self.asked["securityContext"]["privileged"] == true
    }

    fn namespaces(&self) {
        let have: BTreeSet<&str> = self.oci["linux"]["namespaces"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["type"].as_str())
            .collect();
        let mut want = BTreeSet::from(["mount", "cgroup"]);
        for (field, names) in [("hostNetwork", &["network", "uts"][..]), ("hostPID", &["pid"]), ("hostIPC", &["ipc"])] {
            if self.spec[field] != true {
                want.extend(names);
            }
        }
        assert_eq!(have, want, "{}", self.said());
        let of = |kind: &str| {
            let all = self.oci["linux"]["namespaces"].as_array().into_iter().flatten();
            all.filter(|one| one["type"] == kind).any(|one| one["path"].is_string())
        };
        // A container's own, but for what the pod's containers share.
        assert!(!of("mount") && !of("cgroup"), "{}", self.said());
        let shared = self.spec["shareProcessNamespace"] == true;
        assert!(!of("pid") || shared, "{}", self.said());
    }

    fn privileges(&self) {
        let said = || self.said();
        let process = &self.oci["process"];
        let list = |list: &str| -> BTreeSet<String> {
            let names = self.asked["securityContext"]["capabilities"][list].as_array().into_iter().flatten();
            let names = names.filter_map(Value::as_str).map(str::to_ascii_uppercase);
            names
                .map(|name| if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") })
                .collect()
        };
        let (add, drop) = (list("add"), list("drop"));
        let all = || ALL_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let may = if self.privileged() || add.contains("ALL") {
            all()
        } else if drop.contains("ALL") {
            add.clone()
        } else {
            DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).chain(add.clone()).collect()
        };
        for set in ["bounding", "effective", "permitted"] {
            for name in process["capabilities"][set].as_array().into_iter().flatten().filter_map(Value::as_str) {
                assert!(may.contains(name), "{name} in {set}: {}", said());
                assert!(self.privileged() || !drop.contains(name), "{name} was dropped: {}", said());
            }
        }
        assert!(process["capabilities"]["inheritable"].is_null() && process["capabilities"]["ambient"].is_null());
        let refused = self.asked["securityContext"]["allowPrivilegeEscalation"] == false;
        assert_eq!(process["noNewPrivileges"] == true, refused, "{}", said());
        for (field, set) in [("runAsUser", "uid"), ("runAsGroup", "gid")] {
            let asked = self.security(field);
            assert!(asked.is_null() || process["user"][set] == *asked, "{field}: {}", said());
        }
        assert!(self.security("runAsNonRoot") != true || process["user"]["uid"] != 0, "{}", said());
        let devices = &self.oci["linux"]["resources"]["devices"];
        let first = &devices[0];
        if self.privileged() {
            return;
        }
        assert!(self.oci["linux"]["devices"].as_array().is_none_or(Vec::is_empty), "{}", said());
        assert_eq!((&first["allow"], &first["access"]), (&json!(false), &json!("rwm")), "{}", said());
        for rule in devices.as_array().into_iter().flatten().skip(1) {
            // Nodes may be made; opened are memory's (null, zero, full, random, urandom) and terminals'.
            let only_made = rule["access"] == "m";
            let known = matches!(
                (rule["type"].as_str(), rule["major"].as_u64(), rule["minor"].as_u64()),
                (Some("c"), Some(1), Some(3 | 5 | 7 | 8 | 9))
                    | (Some("c"), Some(5), Some(0..=2))
                    | (Some("c"), Some(136), None)
            );
            assert!(only_made || known, "{rule}: {}", said());
        }
    }

    fn filter_and_masks(&self) {
        let linux = &self.oci["linux"];
        let profile = self.security("seccompProfile")["type"].as_str().unwrap_or("RuntimeDefault");
        let open = self.privileged() || profile == "Unconfined";
        assert_eq!(linux["seccomp"].is_null(), open, "{}", self.said());
        if !open {
            assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO", "{}", self.said());
        }
        let unmasked = self.privileged() || self.asked["securityContext"]["procMount"] == "Unmasked";
        let has =
            |list: &str, path: &str| linux[list].as_array().is_some_and(|list| list.iter().any(|one| one == path));
        for path in [
            "/proc/kcore",
            "/proc/keys",
            "/proc/acpi",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/interrupts",
            "/sys/firmware",
        ] {
            assert!(unmasked || has("maskedPaths", path), "{path}: {}", self.said());
        }
        for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"] {
            assert!(unmasked || has("readonlyPaths", path), "{path}: {}", self.said());
        }
        let mounts = self.oci["mounts"].as_array().expect("mounts");
        for mount in mounts.iter().filter(|mount| matches!(mount["type"].as_str(), Some("sysfs" | "cgroup"))) {
            let read_only = mount["options"].as_array().is_some_and(|options| options.iter().any(|one| one == "ro"));
            assert!(read_only || self.privileged(), "{mount}: {}", self.said());
        }
    }

    fn files(&self) {
        let said = || self.said();
        assert_eq!(self.made.rootfs.lower, [self.layer.to_owned()]);
        assert!(self.made.rootfs.upper.starts_with(self.work) && self.made.log_path.starts_with(self.work));
        let read_only = self.asked["securityContext"]["readOnlyRootFilesystem"] == true;
        assert_eq!(self.oci["root"]["readonly"] == true, read_only, "{}", said());
        for mount in self.oci["mounts"].as_array().expect("mounts") {
            let bound =
                mount["type"] == "bind" || mount["source"].as_str().is_some_and(|source| source.starts_with('/'));
            assert!(!bound || mount["source"] == "/staged", "{mount}: {}", said());
        }
        let empty = Vec::new();
        let list = |value: &Value| value.as_array().unwrap_or(&empty).clone();
        let (volumes, wanted) = (list(&self.spec["volumes"]), list(&self.asked["volumeMounts"]));
        for mount in &self.made.mounts {
            let same = |path: &str| Path::new(path).components().eq(Path::new(&mount.destination).components());
            let root = |asked: &Value| {
                let volume = volumes.iter().find(|volume| volume["name"] == asked["name"]).expect("it was valid");
                match volume["hostPath"]["path"].as_str() {
                    Some(path) => PathBuf::from(path),
                    None => self.work.join("volumes").join(asked["name"].as_str().expect("a name")),
                }
            };
            // Two of them may mean the same place: `/data` and `data`.
            let mut asked = wanted.iter().filter(|asked| {
                let path = asked["mountPath"].as_str().unwrap_or_default();
                same(path) || same(&format!("/{path}"))
            });
            let first = asked.next();
            let Some(asked) = asked.find(|asked| mount.source.starts_with(root(asked))).or(first) else {
                // The pod's own files, and nothing else, are there without being asked for.
                assert!(mount.source.starts_with(self.work), "{mount:?}: {}", said());
                assert!(mount.source_fd.is_none() && mount.kind == carob_sandbox::MountKind::Bind);
                continue;
            };
            let root = root(asked);
            assert!(mount.source.starts_with(&root), "{mount:?}: {}", said());
            assert!(!mount.source.components().any(|part| part == std::path::Component::ParentDir), "{}", said());
            if let Some(fd) = &mount.source_fd {
                use std::os::fd::AsRawFd;
                let there = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("it is open");
                let root = root.canonicalize().expect("it is there");
                assert!(there.starts_with(&root), "{} isn't in {}: {}", there.display(), root.display(), said());
            }
            assert!(mount.read_only || asked["readOnly"] != true, "{}", said());
            let outwards = mount.propagation == carob_sandbox::Propagation::Bidirectional;
            assert!(!outwards || (self.privileged() && asked["mountPropagation"] == "Bidirectional"), "{}", said());
        }
    }
}

const PATHS: [&str; 14] = [
    "/data",
    "/",
    "/proc",
    "/proc/sys",
    "/dev",
    "/dev/shm",
    "/etc/hosts",
    "/sys",
    "data",
    "/a/../b",
    "/a/./b/",
    "//x",
    "/etc",
    "/dev/termination-log",
];
const SUB_PATHS: [&str; 9] = ["", "x", "x/y", ".", "./x", "x/./y", "..", "x/../..", "/etc"];
const HOST_PATHS: [&str; 6] = ["/tmp", "/usr/bin", "/", "/tmp/../etc", "tmp", "/proc"];
const CAPABILITY_NAMES: [&str; 8] = ["ALL", "CHOWN", "NET_ADMIN", "CAP_SYS_ADMIN", "sys_ptrace", "NET_RAW", "all", "X"];

/// A pod whose form is good, and whose content is valid more often than not.
fn pod(source: &mut Source<'_>) -> Value {
    let mut spec = Map::new();
    let volumes: Vec<Value> = (0..source.below(4)).map(|index| volume(source, index)).collect();
    let names: Vec<Value> = volumes.iter().map(|volume| volume["name"].clone()).collect();
    for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if source.one_in(5) {
            spec.insert(field.to_owned(), true.into());
        }
    }
    if source.one_in(6) {
        spec.insert("hostUsers".to_owned(), false.into());
    }
    if source.one_in(2) {
        spec.insert("securityContext".to_owned(), pod_security(source));
    }
    let mut containers: Vec<Value> = (0..=source.below(2)).map(|index| container(source, "c", index, &names)).collect();
    if source.one_in(4) {
        spec.insert("initContainers".to_owned(), json!([container(source, "i", 0, &names)]));
    }
    // Something that the generator didn't think of, of the schema's form.
    if source.one_in(8)
        && let Some(schema) = carob_api::schema::schema_of(objects::kind_named("Pod")).property("spec")
        && let Value::Object(mut noise) = objects::value(source, schema, 3)
    {
        noise.shift_remove("containers");
        spec.extend(noise);
    }
    if source.one_in(12)
        && let Some(first) = containers.first_mut()
    {
        first["terminationMessagePath"] = json!(*source.pick(&PATHS));
    }
    spec.insert("containers".to_owned(), containers.into());
    spec.insert("volumes".to_owned(), volumes.into());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec})
}

fn volume(source: &mut Source<'_>, index: usize) -> Value {
    let name = format!("v{index}");
    match source.below(6) {
        0 | 1 => json!({"name": name, "emptyDir": {}}),
        2 => json!({"name": name, "hostPath": {"path": source.pick(&HOST_PATHS)}}),
        3 => json!({"name": name, "configMap": {"name": "c"}}),
        4 => json!({"name": name, "emptyDir": {"medium": "Memory"}}),
        _ => json!({"name": name, "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
    }
}

fn pod_security(source: &mut Source<'_>) -> Value {
    let mut all = Map::new();
    common_security(source, &mut all);
    if source.one_in(4) {
        all.insert("fsGroup".to_owned(), json!(source.below(3000)));
    }
    if source.one_in(4) {
        all.insert("supplementalGroups".to_owned(), json!([source.below(3000), 0]));
    }
    all.into()
}

fn common_security(source: &mut Source<'_>, all: &mut Map<String, Value>) {
    if source.one_in(3) {
        all.insert("runAsUser".to_owned(), json!(source.pick(&[0, 1, 1000, 65_534, 2_147_483_647])));
    }
    if source.one_in(3) {
        all.insert("runAsGroup".to_owned(), json!(source.pick(&[0, 1, 1000])));
    }
    if source.one_in(4) {
        all.insert("runAsNonRoot".to_owned(), source.one_in(2).into());
    }
    if source.one_in(3) {
        let profile = match source.below(4) {
            0 => json!({"type": "Unconfined"}),
            1 => json!({"type": "Localhost", "localhostProfile": source.pick(&["x", "../x", "/etc/passwd"])}),
            _ => json!({"type": "RuntimeDefault"}),
        };
        all.insert("seccompProfile".to_owned(), profile);
    }
}

fn container(source: &mut Source<'_>, prefix: &str, index: usize, volumes: &[Value]) -> Value {
    let mut container = json!({"name": format!("{prefix}{index}"), "image": "x"});
    if source.one_in(3) {
        container["command"] = json!([objects::text(source)]);
        container["args"] = json!([objects::text(source), "$(A)"]);
    }
    if source.one_in(3) {
        container["env"] = json!([{"name": "A", "value": source.pick(&SUB_PATHS)}]);
    }
    if source.one_in(4) {
        container["workingDir"] = json!(source.pick(&PATHS));
    }
    let mut mounts = Vec::new();
    for name in volumes {
        if source.one_in(4) {
            continue;
        }
        let mut mount = json!({"name": name, "mountPath": source.pick(&PATHS)});
        match source.below(6) {
            0 => mount["subPath"] = json!(source.pick(&SUB_PATHS)),
            1 => mount["subPathExpr"] = json!(source.pick(&["$(A)", "$(A)/x", "$$(A)", "$(B)", "x"])),
            _ => {}
        }
        if source.one_in(3) {
            mount["readOnly"] = source.one_in(2).into();
        }
        if source.one_in(5) {
            mount["mountPropagation"] = json!(source.pick(&["None", "HostToContainer", "Bidirectional"]));
        }
        mounts.push(mount);
    }
    container["volumeMounts"] = mounts.into();
    if source.one_in(2) {
        let mut security = Map::new();
        common_security(source, &mut security);
        for field in ["privileged", "allowPrivilegeEscalation", "readOnlyRootFilesystem"] {
            if source.one_in(3) {
                security.insert(field.to_owned(), source.one_in(2).into());
            }
        }
        if source.one_in(4) {
            security.insert("procMount".to_owned(), json!(source.pick(&["Default", "Unmasked"])));
        }
        if source.one_in(2) {
            let names = |source: &mut Source<'_>| -> Vec<&str> {
                (0..source.below(3)).map(|_| *source.pick(&CAPABILITY_NAMES)).collect()
            };
            let (add, drop) = (names(source), names(source));
            security.insert("capabilities".to_owned(), json!({"add": add, "drop": drop}));
        }
        container["securityContext"] = security.into();
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants that couldn't fail would hold anything.
    #[test]
    #[should_panic(expected = "/proc/kcore")]
    fn what_is_unmasked_without_being_asked_for_is_noticed() {
        let asked = json!({"name": "c"});
        let spec = json!({"containers": [asked]});
        let object = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let place = tempfile::tempdir().expect("a directory");
        let config = carob_image::ImageConfig { entrypoint: vec!["/program".to_owned()], ..Default::default() };
        let image = carob_image::fuzzing::image(vec![place.path().to_owned()], config);
        let (sandbox, mut made) = carob_worker::fuzzing::containers(&object, place.path(), &image).expect("a pod");
        let mut made = made.remove(0).1.expect("a configuration");
        made.masks = carob_sandbox::PathMasks::Unmasked;
        let oci = carob_sandbox::fuzzing::spec(&sandbox, &made).expect("a specification");
        Case { spec: &spec, asked: &asked, made: &made, oci: &oci, work: place.path(), layer: place.path() }.hold();
    }
}
