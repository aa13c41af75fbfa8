//! Pulls from a registry that is well, is ill, or is hostile.

use std::fs;
use std::io::Read;
use std::sync::Mutex;

use carob_image::{Credential, Error, LayerPart, LayerStep, Limits, Progress, Registry as Settings, RegistryConfig};
use serde_json::json;

use crate::archive::{Built, Tar, digest, gzip};
use crate::disk::Disk;
use crate::registry::{Fault, Login, Registry};

fn app() -> Built {
    // Content that compresses badly, so that there is something to cut.
    let mut seed = 1_u32;
    let noise = (0..5000).fold(String::new(), |text, _| {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        text + &format!("{seed:08x}")
    });
    let layers = [Tar::new().file("base", &noise).end(), Tar::new().file("app", "1").end()];
    Built::new(&layers, &json!({"Cmd": ["x"]}), gzip)
}

/// A layer's archive as it was before it was compressed.
fn unpacked(built: &Built, number: usize) -> Vec<u8> {
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(built.layers[number].as_slice()).read_to_end(&mut tar).unwrap();
    tar
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Progress for Log {
    fn resolved(&self, reference: &str, layers: &[LayerPart]) {
        self.0.lock().unwrap().push(format!("{} layers of {reference}", layers.len()));
    }

    fn layer(&self, _: &str, step: LayerStep) {
        if !matches!(step, LayerStep::Bytes(_)) {
            self.0.lock().unwrap().push(format!("{step:?}"));
        }
    }
}

#[tokio::test]
async fn a_pull_brings_an_image_and_the_next_brings_only_what_is_new() {
    let (registry, disk, built) = (Registry::start().await, Disk::new(), app());
    registry.add("app", "v1", &built);
    let name = registry.image("app:v1");
    assert!(disk.images.get(&name).await.unwrap().is_none());
    let log = Log::default();
    let image = disk.images.pull(&name, &[], &log).await.unwrap();
    assert_eq!(image.reference, name);
    assert_eq!(image.digest, digest(&built.manifest));
    assert_eq!(image.config.cmd, ["x"]);
    assert_eq!(fs::read_to_string(image.layers[0].join("app")).unwrap(), "1");
    assert!(image.layers[1].join("base").is_file());
    assert_eq!(*log.0.lock().unwrap(), [format!("2 layers of {name}"), "Done".to_owned(), "Done".to_owned()]);

    let next = Built::new(&[unpacked(&built, 0), Tar::new().file("app", "2").end()], &json!({}), gzip);
    registry.add("app", "v1", &next);
    registry.add("app", "v2", &next);
    let log = Log::default();
    let newer = disk.images.pull(&registry.image("app:v2"), &[], &log).await.unwrap();
    assert_eq!(newer.layers[1], image.layers[1]);
    assert!(log.0.lock().unwrap().contains(&"Present".to_owned()));
    assert_eq!(registry.requests(&digest(&built.layers[0])).len(), 1);
    // A tag that moved.
    assert_eq!(disk.images.pull(&name, &[], &()).await.unwrap().digest, digest(&next.manifest));
    let by_digest = registry.image(&format!("app@{}", digest(&built.manifest)));
    assert_eq!(disk.images.pull(&by_digest, &[], &()).await.unwrap().image_id, image.image_id);
    assert!(disk.images.get(&by_digest).await.unwrap().is_some());
}

#[tokio::test]
async fn pulls_at_once_are_one_pull() {
    let (registry, disk, built) = (Registry::start().await, Disk::new(), app());
    registry.add("app", "v1", &built);
    let layer = Registry::blob_path("app", &built.layers[0]);
    registry.fault(&layer, Fault::Stall(100));
    let pull = || {
        let (images, name) = (disk.images.clone(), registry.image("app:v1"));
        tokio::spawn(async move { images.pull(&name, &[], &()).await })
    };
    let first = pull();
    registry.requested(&layer).await;
    let others: Vec<_> = (0..8).map(|_| pull()).collect();
    // One of many going away doesn't matter, also if it is the one that began.
    first.abort();
    assert!(first.await.is_err());
    tokio::task::yield_now().await;
    registry.go_on();
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert_eq!(registry.requests(&layer).len(), 1);
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let (registry, disk, built) = (Registry::start().await, Disk::new(), app());
    registry.add("app", "v1", &built);
    let layer = Registry::blob_path("app", &built.layers[0]);
    registry.fault(&layer, Fault::Stall(10_000));
    registry.fault(&Registry::blob_path("app", &built.layers[1]), Fault::Stall(10));
    let (images, name) = (disk.images.clone(), registry.image("app:v1"));
    let pull = tokio::spawn(async move { images.pull(&name, &[], &()).await });
    registry.requested(&layer).await;
    while disk.names("tmp").is_empty() {
        tokio::task::yield_now().await;
    }
    pull.abort();
    disk.nothing_left_soon().await;
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    for ranges in [true, false] {
        let (registry, disk, built) = (Registry::start().await, Disk::new(), app());
        registry.add("app", "v1", &built);
        let layer = Registry::blob_path("app", &built.layers[0]);
        registry.fault(&layer, Fault::Cut { after: 5000, times: 2 });
        registry.fault("/v2/app/manifests/v1", Fault::Status(503, 1));
        if !ranges {
            registry.without_ranges();
        }
        let image = disk.images.pull(&registry.image("app:v1"), &[], &()).await.unwrap();
        assert!(image.layers[1].join("base").is_file());
        let asked = registry.requests(&layer);
        let from = |offset: u32| Some(format!("bytes={offset}-"));
        assert_eq!(asked, if ranges { [None, from(5000), from(10_000)] } else { [None, from(5000), from(5000)] });
    }
}

#[tokio::test]
async fn what_a_registry_garbles_is_refused() {
    let built = app();
    let mut flipped = built.layers[0].clone();
    *flipped.last_mut().unwrap() ^= 1;
    let other = gzip(&Tar::new().file("other", "x").end());
    let same_size = vec![0; built.layers[0].len()];
    let longer = [&built.layers[0][..], b"more"].concat();
    let big = vec![b' '; 5 << 20];
    let layer = Registry::blob_path("app", &built.layers[0]);
    let config = Registry::blob_path("app", &built.config);
    let manifest = "/v2/app/manifests/v1".to_owned();
    let lying = Built::new(&[Tar::new().file("f", "1").end()], &json!({}), |_| gzip(&Tar::new().file("g", "1").end()));
    for (label, path, fault, expected) in [
        ("a flipped bit", &layer, Fault::Body(flipped), "corrupt|malformed"),
        ("another layer", &layer, Fault::Body(other), "unavailable"),
        ("another layer of the same size", &layer, Fault::Body(same_size), "corrupt|malformed"),
        ("a longer layer", &layer, Fault::Body(longer), "too large"),
        ("always cut", &layer, Fault::Cut { after: 0, times: 99 }, "unavailable"),
        ("another configuration", &config, Fault::Body(vec![b'x'; built.config.len()]), "corrupt"),
        ("an endless manifest", &manifest, Fault::Endless, "too large"),
        ("a large manifest", &manifest, Fault::Body(big), "too large"),
        ("not a manifest", &manifest, Fault::Body(b"<html>".to_vec()), "malformed"),
        ("an empty object", &manifest, Fault::Body(b"{}".to_vec()), "malformed"),
        ("a layer that isn't what the configuration says", &manifest, Fault::Body(lying.manifest.clone()), "corrupt"),
        ("a status", &manifest, Fault::Status(418, 99), "unexpected answer"),
    ] {
        let (registry, disk) = (Registry::start().await, Disk::new());
        registry.add("app", "v1", &lying);
        registry.add("app", "v1", &built);
        registry.fault(path, fault);
        let error = disk.images.pull(&registry.image("app:v1"), &[], &()).await.expect_err(label);
        let text = error.event("app:v1");
        assert!(expected.split('|').any(|expected| text.contains(expected)), "{label}: {text}");
        assert!(text.starts_with("Failed to pull image \"app:v1\": failed to pull and unpack image "), "{text}");
        if error.reason() == "RegistryUnavailable" {
            // Layers that did arrive are kept for the next attempt.
            disk.images.collect_garbage().await.unwrap();
        }
        disk.nothing_left_soon().await;
    }
}

#[tokio::test]
async fn a_layer_that_claims_to_be_huge_is_not_even_asked_for() {
    let (registry, built) = (Registry::start().await, app());
    let disk = Disk::limited(Limits { layer_bytes: 1000, ..Limits::default() });
    registry.add("app", "v1", &built);
    let error = disk.images.pull(&registry.image("app:v1"), &[], &()).await.unwrap_err();
    assert!(error.describe().contains("is too large"), "{}", error.describe());
    disk.nothing_left_soon().await;
}

#[tokio::test]
async fn errors_have_kubelets_reasons() {
    let (registry, disk) = (Registry::start().await, Disk::new());
    let name = registry.image("none:v1");
    let error = disk.images.pull(&name, &[], &()).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImagePull");
    assert_eq!(
        error.event(&name),
        format!("Failed to pull image \"{name}\": failed to pull and unpack image \"{name}\": {name}: not found")
    );
    let error = disk.images.pull("127.0.0.1:1/x", &[], &()).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnavailable");
    let error = disk.images.pull("UPPER", &[], &()).await.unwrap_err();
    assert_eq!(error.reason(), "InvalidImageName");
}

#[tokio::test]
async fn private_images_need_the_right_credentials() {
    let key = |registry: &Registry, username: &str, password: &str, token: Option<&str>| Credential {
        registry: registry.address.clone(),
        username: username.to_owned(),
        password: password.to_owned(),
        identity_token: token.map(str::to_owned),
        shared: false,
    };
    // user:pass
    let basic = "Basic dXNlcjpwYXNz";
    for login in [Login::Basic(basic), Login::Bearer { basic, refresh: "again" }] {
        let (registry, disk) = (Registry::start().await, Disk::new());
        registry.add("team/app", "v1", &app());
        registry.require(login.clone());
        let name = registry.image("team/app:v1");
        let elsewhere = Credential { registry: "example.org".to_owned(), ..key(&registry, "user", "pass", None) };
        for wrong in [vec![], vec![key(&registry, "user", "wrong", None)], vec![elsewhere]] {
            let error = disk.images.pull(&name, &wrong, &()).await.unwrap_err();
            assert!(error.describe().contains("pull access denied"), "{}", error.describe());
            assert_eq!(error.reason(), "ErrImagePull");
        }
        disk.assert_nothing_left();
        let keys = [key(&registry, "user", "wrong", None), key(&registry, "user", "pass", None)];
        disk.images.pull(&name, &keys, &()).await.unwrap();
        // What one has pulled is not for all others.
        let image = disk.images.get(&name).await.unwrap().unwrap();
        assert!(image.is_for(&keys) && !image.is_for(&keys[..1]) && !image.is_for(&[]));
        if matches!(login, Login::Bearer { .. }) {
            let token = [key(&registry, "", "", Some("again"))];
            Disk::new().images.pull(&name, &token, &()).await.unwrap();
        }
    }
}

/// Who has no credentials gets nothing from a pull that another runs with theirs.
#[tokio::test]
async fn a_pull_is_not_shared_with_who_may_not_pull() {
    let (registry, disk, built) = (Registry::start().await, Disk::new(), app());
    registry.add("app", "v1", &built);
    registry.require(Login::Basic("Basic dXNlcjpwYXNz"));
    let layer = Registry::blob_path("app", &built.layers[0]);
    registry.fault(&layer, Fault::Stall(100));
    let (username, password) = ("user".to_owned(), "pass".to_owned());
    let key = Credential { registry: registry.address.clone(), username, password, ..Credential::default() };
    let (images, name) = (disk.images.clone(), registry.image("app:v1"));
    let allowed = tokio::spawn(async move { images.pull(&name, &[key], &()).await });
    registry.requested(&layer).await;
    let error = disk.images.pull(&registry.image("app:v1"), &[], &()).await.unwrap_err();
    assert!(error.describe().contains("pull access denied"));
    registry.go_on();
    allowed.await.unwrap().unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_first_and_passed_by_when_they_fail() {
    let (mirror, registry, built) = (Registry::start().await, Registry::start().await, app());
    let settings = |mirrors: Vec<String>| {
        let registries = [(registry.address.clone(), Settings { mirrors, ..Settings::default() })].into();
        RegistryConfig { registries, ..RegistryConfig::default() }
    };
    mirror.add("app", "v1", &built);
    let name = registry.image("app:v1");
    let dead = "127.0.0.1:1".to_owned();
    let disk = Disk::with(settings(vec![dead.clone(), format!("http://{}", mirror.address)]));
    let image = disk.images.pull(&name, &[], &()).await.unwrap();
    assert_eq!(image.reference, name);
    assert!(registry.requests("").is_empty());

    let disk = Disk::with(settings(vec![mirror.address.clone()]));
    registry.add("app", "v1", &built);
    mirror.fault(&Registry::blob_path("app", &built.layers[0]), Fault::Cut { after: 0, times: 99 });
    disk.images.pull(&name, &[], &()).await.unwrap();
    assert_eq!(registry.requests(&digest(&built.layers[0])).len(), 1);
}

/// A layer is only taken as present for the transported digest that it was verified for.
#[tokio::test]
async fn a_manifest_cannot_claim_a_layer_that_it_does_not_bring() {
    let (registry, disk, built) = (Registry::start().await, Disk::new(), app());
    registry.add("app", "v1", &built);
    disk.images.pull(&registry.image("app:v1"), &[], &()).await.unwrap();
    let junk = gzip(&Tar::new().file("junk", "x").end());
    let claim = Built {
        manifest: crate::archive::manifest(&built.config, &[junk.clone(), built.layers[1].clone()]),
        blobs: [built.blobs.clone(), vec![junk]].concat(),
        ..built.clone()
    };
    let claim = Built { blobs: [claim.blobs.clone(), vec![claim.manifest.clone()]].concat(), ..claim };
    registry.add("claim", "v1", &claim);
    let error = disk.images.pull(&registry.image("claim:v1"), &[], &()).await.unwrap_err();
    assert!(error.describe().contains("unpacked digest"), "{}", error.describe());
    assert!(matches!(error, Error::Pull { .. }));
    // The same content, compressed in another way, is verified and becomes the same layer.
    let plain = Built::new(&[unpacked(&built, 0), unpacked(&built, 1)], &json!({"Cmd": ["x"]}), <[u8]>::to_vec);
    registry.add("plain", "v1", &plain);
    let one = disk.images.get(&registry.image("app:v1")).await.unwrap().unwrap();
    let other = disk.images.pull(&registry.image("plain:v1"), &[], &()).await.unwrap();
    assert_eq!(one.layers, other.layers);
}
