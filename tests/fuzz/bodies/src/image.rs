//! Images: their documents, and their layers unpacked.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use carob_image::{Limits, Reference, docker_config_json};
use serde_json::json;

use crate::source::Source;
use crate::texts;

/// A manifest, an index, a configuration, a file of credentials, a reference: whatever it is.
pub fn document(data: &[u8]) {
    let _ = carob_image::fuzzing::manifest(data);
    let _ = carob_image::fuzzing::configuration(data);
    let _ = docker_config_json(data);
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = Reference::parse(&text) {
        let name = reference.to_string();
        let again = Reference::parse(&name).unwrap_or_else(|error| panic!("{text:?} is {name:?}: {error}"));
        assert_eq!(again.to_string(), name);
    }
}

/// Documents and references of every sort.
pub fn document_seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let part = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 7});
    let documents = [
        json!({"schemaVersion": 2, "config": part, "layers": [part, part]}),
        json!({"schemaVersion": 2, "manifests": [{"digest": digest, "size": 7, "platform": {"os": "linux", "architecture": "amd64", "variant": "v1"}}]}),
        json!({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/x"], "Cmd": null, "Env": ["A=b", "C"], "User": "a:b",
            "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "StopSignal": "SIGTERM"}, "rootfs": {"diff_ids": [digest]}}),
        json!({"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "x:5000": {"username": "u", "password": "p"}}}),
    ];
    let references = texts(&[
        "nginx",
        "nginx:1.27",
        "localhost:5000/a/b:c",
        "x.io/y@sha256:0",
        "[::1]:5000/x",
        "UPPER",
        "a//b",
        "../x",
    ]);
    documents.iter().map(|document| document.to_string().into_bytes()).chain(references).collect()
}

/// Names that try to get out, and those that they try to get out by.
const NAMES: &[&str] = &[
    "a",
    "dir/",
    "dir/file",
    "./x",
    "../outside",
    "dir/../../outside",
    "/outside",
    "/etc/passwd",
    "link",
    "link/x",
    "link/../x",
    "hard",
    ".wh.a",
    "dir/.wh..wh..opq",
    ".wh..",
    ".wh...",
    ".wh./x",
    "dir/.wh.link",
    "a/b/c/d/e",
    "",
    ".",
    "..",
    "dir//x",
    "dir/./x",
    "proc/self/root/x",
    "long/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
];

const TARGETS: &[&str] =
    &["a", "..", "../outside", "/", "/outside", "dir", "../../../../../../tmp", ".", "link", "", "/proc/self/root"];

/// An archive of a few entries: what becomes of it stays in its directory, and is as much as is allowed.
pub fn layer(data: &[u8]) {
    let mut source = Source::new(data);
    let packed = source.below(4);
    let archive = if source.one_in(4) { source.rest().to_vec() } else { archive(&mut source) };
    let layer = match packed {
        1 => gzip(&archive),
        _ => archive,
    };
    let directory = tempfile::tempdir().expect("a directory");
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    fs::create_dir(&root).expect("an empty root");
    fs::write(&outside, "untouched").expect("a file beside it");
    let limits = Limits { layer_bytes: 1 << 20, unpacked_bytes: 4 << 20, entries: 1000, ..Limits::default() };
    let result = carob_image::fuzzing::unpack(&layer, &root, &limits);
    if let Ok(bytes) = result {
        assert!(bytes <= limits.unpacked_bytes, "{bytes} bytes of files");
    }
    assert_eq!(fs::read(&outside).expect("still there"), b"untouched");
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["outside", "root"], "nothing is beside the root that wasn't there");
    assert!(apparent(&root) <= 64 << 20, "files seem no larger than what is allowed");
}

/// The sizes of all files below, links not followed.
fn apparent(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => apparent(&entry.path()),
            Ok(found) if found.is_file() => found.len(),
            _ => 0,
        })
        .sum()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("written into memory");
    encoder.finish().expect("written into memory")
}

fn archive(source: &mut Source<'_>) -> Vec<u8> {
    let mut archive = Vec::new();
    for _ in 0..32 {
        if source.is_empty() {
            break;
        }
        entry(source, &mut archive);
    }
    if !source.one_in(8) {
        archive.extend([0; 1024]);
    }
    archive
}

/// One entry: a header with its checksum, and content, which is sometimes not as long as the header says.
fn entry(source: &mut Source<'_>, archive: &mut Vec<u8>) {
    const KINDS: &[u8] = b"0005521132346LKxgS7\0A";
    let kind = *source.pick(KINDS);
    let content: Vec<u8> = match kind {
        b'x' | b'g' => records(source),
        b'L' | b'K' => [source.pick(NAMES).as_bytes(), b"\0"].concat(),
        b'0' | b'S' | b'7' | b'\0' => source.bytes(64).to_vec(),
        _ => Vec::new(),
    };
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    let name = source.pick(NAMES).as_bytes();
    put(0, &name[..name.len().min(100)]);
    put(100, b"0004755\0");
    put(108, format!("{:07o}\0", source.below(3) * 1000).as_bytes());
    put(116, b"0000000\0");
    let size = if source.one_in(16) { source.number() & 0x1_ffff_ffff } else { content.len() as u64 };
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(156, &[kind]);
    let target = source.pick(TARGETS).as_bytes();
    put(157, target);
    put(257, if source.one_in(4) { b"ustar  \0" } else { b"ustar\x0000" });
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    put(148, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = if source.one_in(32) { sum + 1 } else { sum };
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend(header);
    archive.extend(&content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Records of an extended header.
fn records(source: &mut Source<'_>) -> Vec<u8> {
    const KEYS: &[&str] = &[
        "path",
        "linkpath",
        "size",
        "uid",
        "mtime",
        "SCHILY.xattr.user.x",
        "SCHILY.xattr.security.capability",
        "SCHILY.xattr.trusted.overlay.opaque",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.realsize",
        "GNU.sparse.map",
        "GNU.sparse.name",
        "nope",
    ];
    const VALUES: &[&str] =
        &["0", "1", "99999999999", "-1", "1.5", "0,5,10,5", "y", "\0", "../outside", "/outside", "link/x"];
    let mut records = Vec::new();
    for _ in 0..=source.below(3) {
        let rest = format!(" {}={}\n", source.pick(KEYS), source.pick(VALUES));
        let length = (rest.len()..rest.len() + 20)
            .find(|length| length.to_string().len() + rest.len() == *length)
            .expect("a length");
        let length = if source.one_in(16) { length + 7 } else { length };
        records.extend(format!("{length}{rest}").into_bytes());
    }
    records
}
