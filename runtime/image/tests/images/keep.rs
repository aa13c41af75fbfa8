//! What stays and what goes: references, leases, holds, several processes, crashes.

use std::fs;

use carob_image::{Collected, Images, RegistryConfig};

use crate::archive::{Built, Tar};
use crate::disk::Disk;

fn tar(content: &str) -> Vec<u8> {
    Tar::new().file(content, content).end()
}

#[tokio::test]
async fn layers_go_when_nobody_names_or_uses_them() {
    let disk = Disk::new();
    let one = disk.import_built(&Built::plain(&[tar("shared"), tar("one")]), "one").await.unwrap();
    let two = disk.import_built(&Built::plain(&[tar("shared"), tar("two")]), "two").await.unwrap();
    assert_eq!(one.layers[1], two.layers[1]);
    assert_eq!(disk.names("layers").len(), 3);
    drop(two);
    assert!(disk.images.remove("two").await.unwrap().is_some());
    assert_eq!(disk.names("layers").len(), 2);
    assert!(disk.images.remove("two").await.unwrap().is_none());
    // Removed by name, but still in use.
    let lease = one.lease();
    let paths = one.layers.clone();
    drop(one);
    assert!(disk.images.remove("one").await.unwrap().is_some());
    assert!(paths.iter().all(|path| path.is_dir()));
    assert!(disk.images.get("one").await.unwrap().is_none());
    drop(lease);
    assert_eq!(disk.images.collect_garbage().await.unwrap(), Collected { layers: 2, bytes: 9 });
    disk.assert_nothing_left();
}

/// Two handles stand for two processes: locks are between open files, not processes.
#[tokio::test]
async fn another_process_leaves_leased_and_held_layers_alone() {
    let disk = Disk::new();
    let image = disk.import(&[tar("used")]).await.unwrap();
    let other = Images::open(&disk.path(""), RegistryConfig::default()).unwrap();
    assert_eq!(other.list().await.unwrap().len(), 1);
    assert!(other.remove("test").await.unwrap().is_some());
    assert!(image.layers[0].join("used").is_file(), "leased");

    disk.images.hold("container-1", &image).await.unwrap();
    let path = image.layers[0].clone();
    drop(image);
    other.collect_garbage().await.unwrap();
    assert!(path.join("used").is_file(), "held");
    assert_eq!(other.holders().await.unwrap(), ["container-1"]);
    other.release("container-1").await.unwrap();
    other.release("container-1").await.unwrap();
    assert_eq!(other.collect_garbage().await.unwrap().layers, 1);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_hold_that_a_power_failure_emptied_keeps_nothing_and_is_in_nobodys_way() {
    let disk = Disk::new();
    let image = disk.import(&[tar("used")]).await.unwrap();
    assert_eq!(disk.images.users("test").await.unwrap(), 0);
    disk.images.hold("container-1", &image).await.unwrap();
    assert_eq!(disk.images.users("test").await.unwrap(), 1);
    drop(image);
    for name in disk.names("holds") {
        fs::write(disk.path("holds").join(name), "").unwrap();
    }
    disk.images.remove("test").await.unwrap();
    assert_eq!(disk.images.collect_garbage().await.unwrap().layers, 0, "removing the image has collected it");
    assert!(disk.names("layers").is_empty());
    assert!(disk.images.holders().await.unwrap().is_empty());
    assert!(disk.names("holds").is_empty());
}

#[tokio::test]
async fn what_a_crash_left_is_removed_and_what_others_make_is_not() {
    let disk = Disk::new();
    fs::create_dir_all(disk.path("tmp/dead/layer/fs/deep")).unwrap();
    fs::create_dir_all(disk.path("tmp/alive/layer")).unwrap();
    let alive = fs::File::open(disk.path("tmp/alive")).unwrap();
    alive.lock().unwrap();
    Images::open(&disk.path(""), RegistryConfig::default()).unwrap();
    assert_eq!(disk.names("tmp"), ["alive"]);
    drop(alive);
    disk.images.collect_garbage().await.unwrap();
    disk.assert_nothing_left();
}

#[tokio::test]
async fn an_image_that_lost_a_part_counts_as_absent() {
    let disk = Disk::new();
    let built = Built::plain(&[tar("a")]);
    let layer = disk.import_built(&built, "test").await.unwrap().layers[0].clone();
    fs::remove_dir_all(layer.parent().unwrap()).unwrap();
    assert!(disk.images.get("test").await.unwrap().is_none());
    assert!(disk.import_built(&built, "test").await.unwrap().layers[0].join("a").is_file());
    let blob = disk.path("blobs/sha256").join(&crate::archive::digest(&built.config)[7..]);
    fs::write(&blob, "damaged").unwrap();
    assert!(disk.images.get("test").await.unwrap().is_none());
    assert!(disk.import_built(&built, "test").await.is_ok());
    assert!(disk.images.get("test").await.unwrap().is_some());
}

#[tokio::test]
async fn images_are_removed_by_id_with_all_their_names() {
    let disk = Disk::new();
    let built = Built::plain(&[tar("a")]);
    let image = disk.import_built(&built, "one").await.unwrap();
    disk.import_built(&built, "two:v2").await.unwrap();
    let names: Vec<String> = disk.images.list().await.unwrap().into_iter().map(|image| image.reference).collect();
    assert_eq!(names, ["docker.io/library/one:latest", "docker.io/library/two:v2"]);
    let id = image.image_id.clone();
    drop(image);
    assert!(disk.images.remove(&id).await.unwrap().is_some());
    disk.assert_nothing_left();
}
