//! Images: from registries with and without a password, mirrors and archives; and what is refused.

use std::path::Path;
use std::process::Command;

use carob_tests::pods::{list, pod, shell_pod};
use carob_tests::registry::{PASSWORD, Registry, USER};
use carob_tests::{Carob, Setup, image_layout, text};
use serde_json::{Value, json};

/// A pod that runs `true` in this image.
fn using(name: &str, image: &str, policy: &str) -> Value {
    let mut manifest = shell_pod(name, "exit 0");
    manifest["spec"]["containers"][0]["image"] = json!(image);
    manifest["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    manifest
}

/// Waits until a pod's container waits for this reason; the message it waits with.
fn waiting(carob: &Carob, pod: &str, reason: &str) -> String {
    let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}\n{.status.containerStatuses[0].state.waiting.message}";
    let seen = carob.until(&["get", "pod", pod, "-o", path], |seen| seen.lines().next() == Some(reason));
    seen.split_once('\n').map(|(_, message)| message.to_owned()).unwrap_or_default()
}

/// What is below the data directory's images, but for the locks.
fn stored(carob: &Carob, below: &str) -> usize {
    fn files(at: &Path) -> usize {
        let Ok(entries) = std::fs::read_dir(at) else { return 0 };
        entries.flatten().map(|entry| if entry.path().is_dir() { 1 + files(&entry.path()) } else { 1 }).sum()
    }
    files(&carob.data_dir().join("images").join(below))
}

#[test]
fn images_are_pulled_by_tag_and_digest_once_for_all_who_want_them() {
    let registry = Registry::start();
    let digest = registry.push("nginx", "web/nginx", "1");
    registry.push("nginx", "web/nginx", "latest");
    let host = registry.host();
    let carob = Carob::start(&[]);
    let image = format!("{host}/web/nginx:1");
    let pods: Vec<_> = (0..6).map(|number| using(&format!("p{number}"), &image, "IfNotPresent")).collect();
    carob.apply(&list(&pods));
    for number in 0..6 {
        carob.wait_phase(&format!("p{number}"), "Succeeded");
    }
    for layer in Registry::layers("nginx") {
        assert_eq!(registry.fetched(&format!("/v2/web/nginx/blobs/{layer}")), 1, "six pods, one download of {layer}");
    }
    let id = carob.jsonpath("pod/p0", ".status.containerStatuses[0].imageID");
    assert_eq!(id, format!("{host}/web/nginx@{digest}"));
    carob.wait_event("p0", &format!("Successfully pulled image \"{image}\" in "));

    let by_digest = format!("{host}/web/nginx@{digest}");
    carob.apply(&list(&[
        using("digest", &by_digest, "Always"),
        using("latest", &format!("{host}/web/nginx"), "Always"),
    ]));
    carob.wait_phase("digest", "Succeeded");
    carob.wait_phase("latest", "Succeeded");
    for layer in Registry::layers("nginx") {
        assert_eq!(registry.fetched(&format!("/v2/web/nginx/blobs/{layer}")), 1, "known layers aren't fetched again");
    }
    // Always asks the registry each time; with it gone, that fails, and what is here still runs for the others.
    drop(registry);
    carob.apply(&list(&[
        using("again", &image, "Always"),
        using("here", &image, "IfNotPresent"),
        using("never", &image, "Never"),
    ]));
    carob.wait_phase("here", "Succeeded");
    carob.wait_phase("never", "Succeeded");
    carob.wait_event(
        "here",
        &format!("Container image \"{image}\" already present on machine and can be accessed by the pod"),
    );
    let message = waiting(&carob, "again", "ImagePullBackOff");
    assert!(message.starts_with(&format!("Back-off pulling image \"{image}\"")), "{message}");
    carob.wait_event("again", &format!("Failed to pull image \"{image}\": "));
}

#[test]
fn what_cannot_be_had_is_said_clearly_and_leaves_nothing_behind() {
    let registry = Registry::start();
    let host = registry.host();
    registry.push("busybox", "good", "1");
    registry.push("tools", "bad", "1");
    registry.push("redis", "short", "1");
    let spoiled = Registry::layers("tools").pop().expect("a layer");
    registry.spoil(&spoiled, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let truncated = Registry::layers("redis").pop().expect("a layer");
    registry.spoil(&truncated, |bytes| bytes.truncate(bytes.len() / 2));
    let carob = Carob::start(&[]);
    carob.apply(&list(&[
        using("missing", &format!("{host}/nothing:1"), "IfNotPresent"),
        using("tagless", &format!("{host}/good:2"), "IfNotPresent"),
        using("bad", &format!("{host}/bad:1"), "IfNotPresent"),
        using("short", &format!("{host}/short:1"), "IfNotPresent"),
        using("never", &format!("{host}/good:1"), "Never"),
        using("name", "Not A Name", "IfNotPresent"),
        using("nobody", "127.0.0.1:1/nobody:1", "IfNotPresent"),
    ]));
    let message = waiting(&carob, "never", "ErrImageNeverPull");
    assert_eq!(message, format!("Container image \"{host}/good:1\" is not present with pull policy of Never"));
    let message = waiting(&carob, "name", "InvalidImageName");
    assert!(message.contains("couldn't parse image name \"Not A Name\": invalid reference format"), "{message}");
    carob.wait_event("never", "Error: ErrImageNeverPull");
    carob.wait_event("name", "Error: InvalidImageName");
    for name in ["missing", "tagless", "bad", "short", "nobody"] {
        let message = waiting(&carob, name, "ImagePullBackOff");
        assert!(message.starts_with("Back-off pulling image \""), "{message}");
    }
    carob.wait_event("missing", "not found");
    carob.wait_event("tagless", "good:2: not found");
    let corrupt = carob.wait_event("bad", &spoiled);
    carob.wait_event("short", &truncated);
    assert!(corrupt.contains(&format!("Failed to pull image \"{host}/bad:1\"")), "{corrupt}");
    carob.wait_event("bad", "Error: ErrImagePull");
    carob.wait_event("short", &format!("Failed to pull image \"{host}/short:1\""));
    carob.kubectl(&["delete", "pods", "--all", "--now"]);
    let listed = carob.carob(&["image", "ls", "--data-dir", &carob.data_dir().to_string_lossy()]);
    assert!(!text(&listed).contains(&host), "{}", text(&listed));
    let removed = carob.carob(&["image", "import", "--data-dir", &carob.data_dir().to_string_lossy(), "/etc/passwd"]);
    assert!(!removed.status.success() && text(&removed).contains("cannot import /etc/passwd"), "{}", text(&removed));

    // A pull that works in the end, when the registry has what was asked for.
    registry.push("busybox", "good", "2");
    carob.apply(&using("finally", &format!("{host}/good:2"), "IfNotPresent").to_string());
    carob.wait_phase("finally", "Succeeded");
    assert!(stored(&carob, "layers") > 0);
}

#[test]
fn pull_secrets_open_registries_that_ask_for_a_password() {
    let registry = Registry::start_with_password();
    registry.push("busybox", "private/box", "1");
    let image = format!("{}/private/box:1", registry.host());
    let carob = Carob::start(&[]);
    let secret = |name: &str, password: &str| {
        let (server, user, password) = (
            format!("--docker-server={}", registry.host()),
            format!("--docker-username={USER}"),
            format!("--docker-password={password}"),
        );
        carob.kubectl(&["create", "secret", "docker-registry", name, &server, &user, &password]);
    };
    secret("right", PASSWORD);
    secret("wrong", "open");
    let mut with_wrong = using("with-wrong", &image, "IfNotPresent");
    with_wrong["spec"]["imagePullSecrets"] = json!([{"name": "wrong"}]);
    carob.apply(&list(&[using("without", &image, "IfNotPresent"), with_wrong]));
    for name in ["without", "with-wrong"] {
        waiting(&carob, name, "ImagePullBackOff");
        carob.wait_event(name, "pull access denied");
    }
    let mut with_right = using("with-right", &image, "IfNotPresent");
    with_right["spec"]["imagePullSecrets"] = json!([{"name": "nobody"}, {"name": "wrong"}, {"name": "right"}]);
    carob.apply(&with_right.to_string());
    carob.wait_phase("with-right", "Succeeded");
    carob.wait_event("with-right", "Unable to retrieve some image pull secrets (nobody)");
    // It is here now, for those who could have pulled it, and nobody else is told so.
    let mut again = using("again", &image, "Never");
    again["spec"]["imagePullSecrets"] = json!([{"name": "right"}]);
    carob.apply(&list(&[using("stranger", &image, "Never"), using("curious", &image, "IfNotPresent"), again]));
    carob.wait_phase("again", "Succeeded");
    let message = waiting(&carob, "stranger", "ErrImageNeverPull");
    assert_eq!(message, format!("Container image \"{image}\" is not present with pull policy of Never"));
    waiting(&carob, "curious", "ImagePullBackOff");
    carob.wait_event("curious", "pull access denied");
    // As a ServiceAccount's, for all of its pods.
    carob.kubectl(&["patch", "serviceaccount", "default", "-p", r#"{"imagePullSecrets": [{"name": "right"}]}"#]);
    carob.apply(&using("by-account", &image, "Always").to_string());
    carob.wait_phase("by-account", "Succeeded");
    assert_eq!(carob.jsonpath("pod/by-account", ".spec.imagePullSecrets[0].name"), "right");
    let data_dir = carob.data_dir();
    let pull = |credential: &str| {
        let mut command = Command::new(carob_tests::binary());
        command
            .env("CAROB_REGISTRY_CREDENTIAL", credential)
            .args(["image", "pull", &image, "--data-dir"])
            .arg(&data_dir);
        command.output().expect("the binary starts")
    };
    assert!(pull(&format!("{USER}:{PASSWORD}")).status.success());
    // What the machine's owner has pulled is for everybody.
    carob.wait_phase("stranger", "Succeeded");
    assert!(text(&pull(&format!("{USER}:open"))).contains("pull access denied"));
}

#[test]
fn mirrors_stand_in_for_registries() {
    let mirror = Registry::start();
    mirror.push("busybox", "library/box", "1");
    mirror.push("busybox", "team/box", "1");
    let host = mirror.host();
    // Nobody listens at the first: the next is asked. registry.invalid itself doesn't exist.
    let config = format!(
        "images:\n  registries:\n    docker.io: {{mirrors: [\"http://127.0.0.1:1\", \"http://{host}\"]}}\n    registry.invalid: {{mirrors: [\"{host}\"]}}\n"
    );
    let carob = Carob::start_with(&Setup { config: Some(&config), ..Setup::default() });
    carob.apply(&list(&[
        using("hub", "box:1", "IfNotPresent"),
        using("other", "registry.invalid/team/box:1", "IfNotPresent"),
    ]));
    carob.wait_phase("hub", "Succeeded");
    carob.wait_phase("other", "Succeeded");
    assert!(mirror.fetched(&format!("/v2/library/box/blobs/{}", Registry::layers("busybox")[0])) <= 1);
    let id = carob.jsonpath("pod/other", ".status.containerStatuses[0].imageID");
    assert!(id.starts_with("registry.invalid/team/box@sha256:"), "it keeps the name it was asked for by: {id}");
}

#[test]
fn carob_image_works_beside_a_running_gateway_and_without_one() {
    let registry = Registry::start();
    registry.push("busybox", "pulled", "1");
    let pulled = format!("{}/pulled:1", registry.host());
    let mut carob = Carob::start(&["tools"]);
    let image = |arguments: &[&str]| {
        let data_dir = carob.data_dir();
        let mut all = vec!["image"];
        all.extend(arguments);
        let directory = data_dir.to_string_lossy().into_owned();
        all.extend(["--data-dir", &directory]);
        let output = carob.carob(&all);
        (output.status.success(), text(&output))
    };
    let names = || {
        let (done, listed) = image(&["ls"]);
        assert!(done, "{listed}");
        listed.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["docker.io/library/tools:latest"]);

    // A layout packed into a tar, under a name of its own.
    let tar = carob.path("layout.tar");
    let packed = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(image_layout("busybox")).arg(".").status();
    assert!(packed.expect("tar").success());
    let (done, said) = image(&["import", &tar.to_string_lossy(), "--name", "from-a-tar:1"]);
    assert!(done && said.starts_with("docker.io/library/from-a-tar:1  sha256:"), "{said}");
    let archive = docker_archive(&carob.path("archive"), "archived:2");
    let (done, said) = image(&["import", &archive]);
    assert!(done && said.starts_with("docker.io/library/archived:2  sha256:"), "{said}");
    let (done, said) = image(&["pull", &pulled]);
    assert!(done && said.starts_with(&pulled), "{said}");
    let mut expected = vec![
        pulled.clone(),
        "docker.io/library/archived:2".into(),
        "docker.io/library/from-a-tar:1".into(),
        "docker.io/library/tools:latest".into(),
    ];
    expected.sort();
    let mut listed = names();
    listed.sort();
    assert_eq!(listed, expected);

    // The running gateway sees them at once.
    carob.apply(&list(&[
        using("a", "from-a-tar:1", "Never"),
        using("b", "archived:2", "Never"),
        using("c", &pulled, "Never"),
    ]));
    for name in ["a", "b", "c"] {
        carob.wait_phase(name, "Succeeded");
    }
    let mut running = pod(
        "running",
        &[json!({"name": "main", "image": "archived:2", "imagePullPolicy": "Never", "command": ["sleep", "3600"]})],
    );
    running["spec"]["terminationGracePeriodSeconds"] = json!(0);
    carob.start_pod(&running.to_string(), "running");
    let (done, said) = image(&["rm", "--force", "archived:2", &pulled]);
    assert!(done && said.contains("freed"), "{said}");
    assert!(!names().contains(&pulled));
    assert_eq!(carob.kubectl(&["exec", "running", "--", "echo", "still here"]), "still here\n");
    carob.apply(&using("gone", "archived:2", "Never").to_string());
    waiting(&carob, "gone", "ErrImageNeverPull");
    let (done, said) = image(&["rm", "archived:2"]);
    assert!(!done && said.contains("there is no image archived:2"), "{said}");

    carob.down();
    let image = |arguments: &[&str]| {
        let directory = carob.data_dir().to_string_lossy().into_owned();
        let output = carob.carob(&[&["image"], arguments, &["--data-dir", &directory]].concat());
        (output.status.success(), text(&output))
    };
    let (done, said) = image(&["import", &image_layout("nginx").to_string_lossy()]);
    assert!(done, "{said}");
    let (done, listed) = image(&["ls"]);
    assert!(done && listed.contains("docker.io/library/nginx:latest") && listed.contains("from-a-tar"), "{listed}");
    let (done, said) = image(&["rm", "nginx", "from-a-tar:1", "tools"]);
    assert!(done, "{said}");
    assert_eq!(stored(&carob, "layers"), 0, "nothing uses any layer");
}

/// What `docker save` makes of the busybox image: layers as plain tars beside a manifest.json.
fn docker_archive(work: &Path, name: &str) -> String {
    std::fs::create_dir_all(work).expect("a folder");
    let layout = image_layout("busybox");
    let read = |digest: &Value| {
        std::fs::read(layout.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"))).expect("a blob")
    };
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).expect("an index")).expect("JSON");
    let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0]["digest"])).expect("JSON");
    std::fs::write(work.join("config.json"), read(&manifest["config"]["digest"])).expect("written");
    std::fs::create_dir_all(work.join("one")).expect("a folder");
    std::fs::write(work.join("one/layer.tar.gz"), read(&manifest["layers"][0]["digest"])).expect("written");
    assert!(Command::new("gzip").arg("-d").arg(work.join("one/layer.tar.gz")).status().expect("gzip").success());
    let entry = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["one/layer.tar"]}]);
    std::fs::write(work.join("manifest.json"), entry.to_string()).expect("written");
    let archive = work.with_extension("tar");
    let packed = Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(work)
        .args(["manifest.json", "config.json", "one"])
        .status();
    assert!(packed.expect("tar").success());
    archive.to_string_lossy().into_owned()
}

#[test]
fn registries_over_https_are_trusted_by_their_ca_file_alone() {
    // Loopback registries need no certificate: this one is at the pods' gateway, an address of the test's own Carob.
    let octet = carob_tests::network_octet();
    let gateway = &format!("10.213.{octet}.1");
    let pods = format!("10.213.{octet}.0/24");
    let network = ["--pod-cidr", pods.as_str()];
    let port = carob_tests::free_port();
    let image = format!("{gateway}:{port}/private/box:1");
    let mut carob = Carob::start_with(&Setup { arguments: &network, ..Setup::default() });
    let registry = Registry::start_with_password();
    registry.push("busybox", "private/box", "1");
    let (certificate, key) = (carob.path("registry.crt"), carob.path("registry.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=registry", "-addext", &format!("subjectAltName=IP:{gateway}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", text(&made));
    let _secure = registry.over_tls(gateway, port, &certificate, &key);
    carob.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "login",
        &format!("--docker-server={gateway}:{port}"),
        &format!("--docker-username={USER}"),
        &format!("--docker-password={PASSWORD}"),
    ]);
    let with_login = |name: &str| {
        let mut manifest = using(name, &image, "Always");
        manifest["spec"]["imagePullSecrets"] = json!([{"name": "login"}]);
        manifest.to_string()
    };
    carob.apply(&with_login("untrusted"));
    waiting(&carob, "untrusted", "ImagePullBackOff");
    let said = carob.wait_event("untrusted", "certificate");
    assert!(!said.contains("Successfully pulled"), "{said}");
    carob.kubectl(&["delete", "pod", "untrusted"]);

    carob.terminate();
    let config = format!("images:\n  registries:\n    \"{gateway}:{port}\": {{ca_file: {}}}\n", certificate.display());
    std::fs::write(carob.path("carob.yaml"), config).expect("the configuration is written");
    carob.up(&network);
    carob.apply(&with_login("trusted"));
    carob.wait_phase("trusted", "Succeeded");
    carob.apply(&using("stranger", &image, "Always").to_string());
    waiting(&carob, "stranger", "ImagePullBackOff");
    carob.wait_event("stranger", "pull access denied");
}

#[test]
fn links_of_an_image_that_lead_nowhere_are_where_its_files_and_volumes_go() {
    let carob = Carob::start(&[]);
    let work = carob.path("linked");
    docker_archive(&work, "linked:1");
    // One more layer on top.
    let layer = carob.path("layer");
    std::fs::create_dir_all(layer.join("etc")).expect("a folder");
    for (target, link) in [
        ("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"),
        ("/../../nowhere/hosts", "etc/hosts"),
        ("/gone/data", "data"),
    ] {
        std::os::unix::fs::symlink(target, layer.join(link)).expect("a link");
    }
    std::fs::create_dir_all(work.join("two")).expect("a folder");
    let tar = |from: &Path, to: &Path, what: &[&str]| {
        let done = Command::new("tar").arg("-cf").arg(to).arg("-C").arg(from).args(what).status().expect("tar");
        assert!(done.success());
    };
    tar(&layer, &work.join("two/layer.tar"), &["etc/resolv.conf", "etc/hosts", "data"]);
    let read = |path: &Path| std::fs::read(path).expect("a file");
    let mut config: Value = serde_json::from_slice(&read(&work.join("config.json"))).expect("JSON");
    let sum = Command::new("sha256sum").arg(work.join("two/layer.tar")).output().expect("sha256sum");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().expect("a sum").to_owned();
    config["rootfs"]["diff_ids"].as_array_mut().expect("layers").push(json!(format!("sha256:{sum}")));
    std::fs::write(work.join("config.json"), config.to_string()).expect("written");
    let entry =
        json!([{"Config": "config.json", "RepoTags": ["linked:1"], "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    std::fs::write(work.join("manifest.json"), entry.to_string()).expect("written");
    let archive = work.with_extension("tar");
    tar(&work, &archive, &["manifest.json", "config.json", "one", "two"]);
    let imported = carob.carob(&[
        "image",
        "import",
        "--data-dir",
        &carob.data_dir().to_string_lossy(),
        &archive.to_string_lossy(),
    ]);
    assert!(imported.status.success(), "{}", text(&imported));

    let script =
        "grep -c nameserver /run/systemd/resolve/stub-resolv.conf; grep -c linked /nowhere/hosts; cat /gone/data/key";
    let mut manifest = shell_pod("linked", script);
    manifest["spec"]["containers"][0]["image"] = json!("linked:1");
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "map", "mountPath": "/data"}]);
    manifest["spec"]["volumes"] = json!([{"name": "map", "configMap": {"name": "map"}}]);
    carob.kubectl(&["create", "configmap", "map", "--from-literal=key=value"]);
    let printed = carob.run_to_end(&manifest);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines.len() == 3 && lines[0] != "0" && lines[1..] == ["1", "value"], "{printed}");
}
