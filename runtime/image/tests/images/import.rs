//! What an imported image looks like, and in how many ways it can be packed.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde_json::json;

use crate::archive::{Built, Header, Tar, architecture, digest, gzip, write_layout};
use crate::disk::{Disk, Mounted};

#[tokio::test]
async fn entries_keep_what_the_archive_says_of_them() {
    let disk = Disk::new();
    let long = "d/".repeat(60) + &"n".repeat(120);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attributes: [(&str, &[u8]); 5] = [
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"kept"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("mtime", b"1234567890.5"),
    ];
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"3000"),
    ];
    let mut map = b"1\n2000\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"end");
    let tar = Tar::new()
        .raw(Header::new("bin/su", b'0', 2).mode(0o4755).owner(7, 8), b"su")
        .pax(&attributes)
        .file("ping", "x")
        .extension(b'L', format!("{long}\0").as_bytes())
        .file("cut", "long")
        .symlink("link", "/no/where")
        .hard_link("sh", "bin/su")
        .raw(Header::new("fifo", b'6', 0).mode(0o622), b"")
        .raw(Header::new("dev/null", b'3', 0).device(1, 3).mode(0o666), b"")
        .raw(Header::new("dev/sda", b'4', 0).device(8, 0), b"")
        .raw(Header::new("dev/mem", b'3', 0).device(1, 1), b"")
        .dir("time/", 0o750)
        .file("time/late", "")
        .file("twice", "first")
        .file("twice", "second")
        .dir("was-dir", 0o755)
        .file("was-dir/x", "")
        .file("was-dir", "now a file")
        .pax(&sparse)
        .raw(&Header::new("x", b'0', map.len() as u64), &map)
        .end();
    let image = disk.import(&[tar]).await.unwrap();
    let root = &image.layers[0];
    let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let su = meta("bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.nlink(), su.mtime()), (0o4755, 7, 8, 2, 1_600_000_000));
    assert_eq!(meta("sh").ino(), su.ino());
    assert_eq!(meta("ping").mtime_nsec(), 500_000_000);
    let names = xattr::list(root.join("ping")).unwrap();
    let names: Vec<_> = names.filter(|name| name.as_bytes() != b"security.selinux").collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(xattr::get(root.join("ping"), "security.capability").unwrap().unwrap(), capability);
    assert_eq!(fs::read_to_string(root.join(&long)).unwrap(), "long");
    assert_eq!(fs::read_link(root.join("link")).unwrap().as_os_str(), "/no/where");
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!((meta("dev/null").rdev(), meta("dev/null").mode() & 0o777), (nix::sys::stat::makedev(1, 3), 0o666));
    assert!(!root.join("dev/sda").exists() && !root.join("dev/mem").exists());
    assert_eq!((meta("time").mode() & 0o777, meta("time").mtime()), (0o750, 1_600_000_000));
    assert_eq!(fs::read_to_string(root.join("twice")).unwrap(), "second");
    assert_eq!(fs::read_to_string(root.join("was-dir")).unwrap(), "now a file");
    let sparse = fs::read(root.join("sparse")).unwrap();
    assert_eq!((sparse.len(), &sparse[2000..2003], sparse[1999]), (3000, &b"end"[..], 0));
}

/// What this crate reads through the layers is what overlay shows of them.
#[tokio::test]
async fn whiteouts_hide_what_lies_below() {
    let disk = Disk::new();
    let below = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/gone", "1")
        .file("etc/linked", "1")
        .file("etc/stays", "1")
        .file("opaque/old", "1")
        .file("replaced/old", "1")
        .file("both/old", "1")
        .end();
    let above = Tar::new()
        .file("etc/.wh.gone", "")
        .file("marker", "")
        .hard_link("etc/.wh.linked", "marker")
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.replaced", "")
        .dir("replaced/", 0o755)
        .file("replaced/new", "2")
        .dir("both/", 0o755)
        .file("both/new", "2")
        .file(".wh.both", "")
        .file(".wh..wh.plnk/1.2", "bookkeeping")
        .end();
    let image = disk.import(&[below, above]).await.unwrap();
    let mounted = Mounted::new(&image, &disk.temp.path().join("mounted"));
    for (path, expected) in [
        ("etc/gone", None),
        ("etc/linked", None),
        ("etc/stays", Some("1")),
        ("opaque/old", None),
        ("opaque/new", Some("2")),
        ("replaced/old", None),
        ("replaced/new", Some("2")),
        ("both/old", None),
        ("both/new", Some("2")),
        (".wh..wh.plnk/1.2", None),
    ] {
        let kernel = fs::read_to_string(mounted.path(path)).ok();
        assert_eq!(kernel.as_deref(), expected, "{path}, as overlay sees it");
        let ours = image.read_file(path, 100).unwrap().map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(ours, kernel, "{path}, as we see it");
    }
}

#[tokio::test]
async fn an_opaque_root_hides_all_lower_layers() {
    let disk = Disk::new();
    let below = Tar::new().file("old", "1").end();
    let above = Tar::new().file(".wh..wh..opq", "").file("new", "2").end();
    let image = disk.import(&[below, above]).await.unwrap();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(image.read_file("/old", 10).unwrap(), None);
    assert_eq!(image.read_file("/new", 10).unwrap().as_deref(), Some(&b"2"[..]));
}

/// A layer that leaves out its folders gets them from the layers below, also behind links.
#[tokio::test]
async fn a_layer_without_folders_fits_what_lies_below() {
    let disk = Disk::new();
    let below = Tar::new()
        .raw(Header::new("tmp/", b'5', 0).mode(0o1777), b"")
        .raw(Header::new("data/", b'5', 0).mode(0o700).owner(5, 6), b"")
        .dir("usr/", 0o755)
        .dir("usr/lib/", 0o751)
        .symlink("lib", "usr/lib")
        .file("usr/lib/libc.so", "libc")
        .end();
    let above = Tar::new()
        .file("tmp/x", "2")
        .file("data/deep/x", "2")
        .file("lib/plugin/p.so", "2")
        .hard_link("lib/again.so", "lib/plugin/p.so")
        .end();
    let alone = disk.import(std::slice::from_ref(&above)).await.unwrap();
    let image = disk.import_built(&Built::plain(&[below, above]), "both").await.unwrap();
    let mounted = Mounted::new(&image, &disk.temp.path().join("mounted"));
    let meta = |name: &str| fs::symlink_metadata(mounted.path(name)).unwrap();
    assert_eq!(meta("tmp").mode() & 0o7777, 0o1777);
    assert_eq!((meta("data").mode() & 0o7777, meta("data").uid(), meta("data").gid()), (0o700, 5, 6));
    assert_eq!((meta("data/deep").mode() & 0o7777, meta("data/deep").uid()), (0o755, 0));
    assert!(meta("lib").file_type().is_symlink());
    assert_eq!(meta("usr/lib").mode() & 0o7777, 0o751);
    for (path, content) in
        [("lib/libc.so", "libc"), ("usr/lib/plugin/p.so", "2"), ("usr/lib/again.so", "2"), ("data/deep/x", "2")]
    {
        assert_eq!(fs::read_to_string(mounted.path(path)).unwrap(), content, "{path}");
    }
    assert!(alone.layers[0].join("lib/plugin/p.so").is_file(), "the shared form is untouched");
    drop(mounted);
    let again = disk.images.get("both").await.unwrap().unwrap();
    assert_eq!(again.layers, image.layers);
}

#[tokio::test]
async fn users_are_found_in_the_images_own_files() {
    let disk = Disk::new();
    let below = Tar::new()
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nold:x:9:9::/:/bin/sh\n")
        .file("etc/group", "root:x:0:\n")
        .end();
    let above = Tar::new()
        .file("etc/real", "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:101:102:web:/srv/web:/bin/sh\n")
        .symlink("etc/passwd", "/../etc/real")
        .file("etc/group", "root:x:0:\nweb:x:102:\nadm:x:4:root,web\nlog:x:44: web\nother:x:5:root\n")
        .end();
    let image = disk.import(&[below, above]).await.unwrap();
    let ids = |user: &str| image.resolve_user(user).map(|it| (it.uid, it.gid, it.groups, it.home));
    let home = |home: &str| home.to_owned();
    assert_eq!(ids("").unwrap(), (0, 0, vec![0, 4, 5], home("/root")));
    assert_eq!(ids("web").unwrap(), (101, 102, vec![102, 4, 44], home("/srv/web")));
    assert_eq!(ids("101").unwrap(), (101, 102, vec![102, 4, 44], home("/srv/web")));
    assert_eq!(ids("web:adm").unwrap(), (101, 4, vec![4, 44], home("/srv/web")));
    assert_eq!(ids("1000:2000").unwrap(), (1000, 2000, vec![2000], home("/")));
    assert_eq!(ids("1000").unwrap(), (1000, 0, vec![0], home("/")));
    let message = |user: &str| ids(user).unwrap_err().to_string();
    assert_eq!(message("old"), "unable to find user old: no matching entries in passwd file");
    assert_eq!(message("web:none"), "unable to find group none: no matching entries in group file");
    assert_eq!(image.resolve_user("old").unwrap_err().reason(), "CreateContainerConfigError");
}

#[tokio::test]
async fn links_in_an_image_do_not_lead_to_the_host() {
    let disk = Disk::new();
    let tar = Tar::new()
        .symlink("etc", "/../../../../../../etc")
        .symlink("passwd", "/etc/passwd")
        .symlink("loop", "loop")
        .raw(Header::new("fifo", b'6', 0).mode(0o622), b"")
        .file("big", "0123456789")
        .end();
    let image = disk.import(&[tar]).await.unwrap();
    for path in ["/etc/passwd", "passwd", "loop", "loop/x", "fifo", "../../etc/hostname", "big/x", "/"] {
        assert_eq!(image.read_file(path, 100).unwrap(), None, "{path}");
    }
    assert!(image.read_file("big", 9).is_err());
    assert!(image.read_file("big", 10).unwrap().is_some());
}

#[tokio::test]
async fn an_oci_layout_is_read_from_a_folder_a_tar_and_a_compressed_tar() {
    let config = json!({"Entrypoint": ["/x"], "Cmd": ["y"], "Env": ["A=b"], "User": "web", "StopSignal": "SIGQUIT",
        "WorkingDir": "/w", "ExposedPorts": {"80/tcp": {}}, "Labels": {"l": "m"}});
    let built = Built::new(&[Tar::new().file("f", "1").end()], &config, gzip);
    let folder = tempfile::tempdir().unwrap();
    built.write_layout(folder.path(), "example.org/app:v1");
    let mut tar = Tar::new();
    for name in walk(folder.path()) {
        let content = fs::read(folder.path().join(&name)).unwrap();
        tar = tar.raw(&Header::new(&format!("./{name}"), b'0', content.len() as u64), &content);
    }
    let tar = tar.end();
    let (plain, packed) = (folder.path().join("image.tar"), folder.path().join("image.tar.zst"));
    fs::write(&plain, &tar).unwrap();
    fs::write(&packed, zstd::encode_all(tar.as_slice(), 1).unwrap()).unwrap();
    for path in [folder.path(), &plain, &packed] {
        let disk = Disk::new();
        let images = disk.images.import(path, None).await.unwrap();
        let [image] = images.as_slice() else { panic!("{} images", images.len()) };
        assert_eq!(image.reference, "example.org/app:v1");
        assert_eq!(image.digest, digest(&built.manifest));
        assert_eq!(image.image_id, digest(&built.config));
        assert_eq!(image.repo_digest(), format!("example.org/app@{}", digest(&built.manifest)));
        assert_eq!(
            (image.config.entrypoint.as_slice(), image.config.cmd.as_slice()),
            (&["/x".into()][..], &["y".into()][..])
        );
        assert_eq!(image.config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(image.config.exposed_ports, ["80/tcp"]);
        assert_eq!(fs::read_to_string(image.layers[0].join("f")).unwrap(), "1");
        assert_eq!(disk.images.list().await.unwrap().len(), 1);
    }
}

fn walk(root: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found
}

#[tokio::test]
async fn archives_of_docker_save_are_read_with_all_their_names() {
    let layer = Tar::new().file("f", "1").end();
    let config = Built::plain(std::slice::from_ref(&layer)).config;
    let name = format!("{}.json", &digest(&config)[7..]);
    let manifest = json!([{"Config": name, "RepoTags": ["app:v1", "example.org/app:v2"],
        "Layers": ["aa/layer.tar"]}]);
    let archive = |layer: &[u8], config: &[u8]| {
        let raw = |tar: Tar, name: &str, bytes: &[u8]| tar.raw(&Header::new(name, b'0', bytes.len() as u64), bytes);
        let tar = raw(Tar::new(), &name, config);
        // Docker links a layer that several images share.
        let tar = raw(tar.dir("aa/", 0o755).symlink("aa/layer.tar", "../bb/layer.tar"), "bb/layer.tar", layer);
        raw(tar, "manifest.json", manifest.to_string().as_bytes()).end()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.tar");
    for layer in [layer.clone(), gzip(&layer)] {
        fs::write(&path, archive(&layer, &config)).unwrap();
        let disk = Disk::new();
        let images = disk.images.import(&path, None).await.unwrap();
        let names: Vec<&str> = images.iter().map(|image| image.reference.as_str()).collect();
        assert_eq!(names, ["docker.io/library/app:v1", "example.org/app:v2"]);
        assert_eq!(images[0].image_id, digest(&config));
        assert!(disk.images.get("app:v1").await.unwrap().is_some());
    }
    let disk = Disk::new();
    fs::write(&path, archive(&Tar::new().file("f", "2").end(), &config)).unwrap();
    assert!(disk.images.import(&path, None).await.unwrap_err().to_string().contains("is corrupt"));
    fs::write(&path, archive(&layer, &[&config[..], b" "].concat())).unwrap();
    assert!(disk.images.import(&path, None).await.unwrap_err().to_string().contains("is corrupt"));
    disk.assert_nothing_left();
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_platform() {
    let built = Built::plain(&[Tar::new().file("f", "here").end()]);
    let entry = |manifest: &[u8], architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(manifest),
            "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(b"other", "s390x"), entry(&built.manifest, architecture()), entry(b"att", "unknown")]});
    let index = index.to_string().into_bytes();
    let folder = tempfile::tempdir().unwrap();
    let mut blobs = built.blobs.clone();
    blobs.push(index.clone());
    let top = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(&index), "size": index.len()}]});
    write_layout(folder.path(), &blobs, &top);
    let disk = Disk::new();
    let error = disk.images.import(folder.path(), None).await.unwrap_err();
    assert!(error.to_string().contains("has no name"), "{error}");
    let image = disk.images.import(folder.path(), Some("multi:1")).await.unwrap().remove(0);
    assert_eq!((image.digest.as_str(), image.target.as_str()), (&*digest(&built.manifest), &*digest(&index)));
    for found in [format!("multi@{}", digest(&index)), format!("multi@{}", digest(&built.manifest)), image.image_id] {
        assert!(disk.images.get(&found).await.unwrap().is_some(), "{found}");
    }
    assert!(disk.images.get(&format!("mult@{}", digest(&index))).await.unwrap().is_none());
}
