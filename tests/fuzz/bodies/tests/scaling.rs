//! What clients may send in megabytes costs time in proportion to its size: four times as much takes less than eight
//! times as long, in CPU time, which other processes don't lengthen.

use std::fmt::Write as _;
use std::time::Duration;

use carob_api::apply::{Manager, Operation, apply, track_update};
use carob_api::decode::{FieldValidation, decode_json, decode_yaml, normalize};
use carob_api::kind::Part;
use carob_api::patch::{json_patch, merge_patch, strategic_merge};
use carob_api::selector::LabelSelector;
use carob_api::status::Status;
use carob_api::validation::metadata;
use carob_fuzz_bodies::objects::kind_named;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

/// How large the smaller of two inputs is, in items.
const SMALL: usize = 800;
/// By how much the other is larger, and how much longer it may take: quadratic work would take 16 times as long.
const FACTOR: usize = 4;
const MOST: f64 = 9.0;
/// What is quicker than this isn't looked at: it says nothing.
const NOISE: Duration = Duration::from_millis(15);

fn manager(name: &str, operation: Operation) -> Manager<'_> {
    Manager { name, operation, subresource: "", time: "2026-01-02T03:04:05Z" }
}

/// The CPU time of the quicker of two runs.
fn time(work: &dyn Fn()) -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has it"));
    let run = || {
        let before = now();
        work();
        now().saturating_sub(before)
    };
    (0..2).map(|_| run()).min().unwrap_or_default()
}

/// What was found not to be linear.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn linear(&mut self, what: &str, work: impl Fn(usize)) {
        work(16); // what is made once
        let small = time(&|| work(SMALL));
        let large = time(&|| work(SMALL * FACTOR));
        let ratio = large.as_secs_f64() / small.max(NOISE).as_secs_f64();
        let found = format!("{what}: {SMALL} items take {small:?}, {FACTOR} times as many {large:?}: {ratio:.1}");
        println!("{found}");
        if ratio >= MOST {
            self.0.push(found);
        }
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "{:#?}", self.0);
    }
}

fn map(many: usize) -> Value {
    let entries: Map<String, Value> = (0..many).map(|n| (format!("key-{n}"), "v".into())).collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": entries, "annotations": entries}, "data": entries})
}

fn pod(many: usize) -> Value {
    let env: Vec<Value> = (0..many).map(|n| json!({"name": format!("V{n}"), "value": "x"})).collect();
    let ports: Vec<Value> = (0..many).map(|n| json!({"containerPort": n % 65_535 + 1, "protocol": "TCP"})).collect();
    let mounts: Vec<Value> =
        (0..many).map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/m/{n}")})).collect();
    let volumes: Vec<Value> = (0..many).map(|n| json!({"name": format!("v{n}"), "emptyDir": {}})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {
        "containers": [{"name": "c", "image": "i", "env": env, "ports": ports, "volumeMounts": mounts}], "volumes": volumes,
        "tolerations": (0..many).map(|n| json!({"key": format!("k{n}"), "operator": "Exists"})).collect::<Vec<_>>()}})
}

fn containers(many: usize) -> Value {
    let containers: Vec<Value> = (0..many).map(|n| json!({"name": format!("c{n}"), "image": "i"})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": containers}})
}

/// A kind, and an object of it with so many items.
type Shape = (&'static str, fn(usize) -> Value);

const SHAPES: [Shape; 3] = [("ConfigMap", map), ("Pod", pod), ("Pod", containers)];

#[test]
fn bodies_are_decoded_in_linear_time() {
    let mut findings = Findings::default();
    for (kind, shape) in SHAPES {
        let kind = kind_named(kind);
        findings.linear(&format!("JSON of a {}", kind.kind), |many| {
            let text = shape(many).to_string();
            decode_json(kind, text.as_bytes(), FieldValidation::Strict).expect("decoded");
        });
    }
    let maps = kind_named("ConfigMap");
    findings.linear("unknown fields", |many| {
        let mut text = "{\"metadata\":{\"name\":\"a\"}".to_owned();
        (0..many).for_each(|n| write!(text, ",\"unknown{n}\":{{\"x\":[1]}}").expect("written"));
        let decoded = decode_json(maps, format!("{text}}}").as_bytes(), FieldValidation::Warn).expect("decoded");
        assert!(decoded.warnings.len() <= 100);
    });
    findings.linear("one key again and again", |many| {
        let text = format!("{{\"data\":{{{}}}}}", vec!["\"k\":\"v\""; many].join(","));
        decode_json(maps, text.as_bytes(), FieldValidation::Warn).expect("decoded");
    });
    findings.linear("YAML", |many| {
        let mut text = "metadata: {name: a}\ndata:\n".to_owned();
        (0..many).for_each(|n| writeln!(text, "  key-{n}: v").expect("written"));
        decode_yaml(maps, text.as_bytes(), FieldValidation::Strict).expect("decoded");
    });
    findings.linear("one key of YAML again and again", |many| {
        let text = format!("data:\n{}", "  k: v\n".repeat(many));
        let _ = decode_yaml(maps, text.as_bytes(), FieldValidation::Warn);
    });
}

#[test]
fn objects_are_prepared_and_validated_in_linear_time() {
    let mut findings = Findings::default();
    for (kind, shape) in SHAPES {
        let kind = kind_named(kind);
        let decoded = |many: usize| {
            let text = shape(many).to_string();
            decode_json(kind, text.as_bytes(), FieldValidation::Ignore).expect("decoded").value
        };
        let objects: Vec<(usize, Value)> =
            [16, SMALL, SMALL * FACTOR].into_iter().map(|many| (many, decoded(many))).collect();
        let of = |many: usize| objects.iter().find(|(known, _)| *known == many).expect("made").1.clone();
        findings.linear(&format!("defaults of a {}", kind.kind), |many| {
            let mut object = of(many);
            kind.default(&mut object);
            normalize(kind, &mut object);
            kind.prepare_create(&mut object);
        });
        findings.linear(&format!("validation of a {}", kind.kind), |many| {
            let mut object = of(many);
            kind.default(&mut object);
            let mut errors = metadata::validate_create(kind, &object);
            errors.extend(kind.validate(&object));
            let _ = Status::invalid((kind.group, kind.kind), "a", errors).to_value().to_string();
        });
        findings.linear(&format!("validation of a changed {}", kind.kind), |many| {
            let object = of(many);
            let mut new = object.clone();
            new["metadata"]["annotations"]["x"] = "y".into();
            kind.prepare_update(&mut new, &object, Part::Main);
            let mut errors = metadata::validate_update(kind, &new, &object);
            errors.extend(kind.validate_update(&new, &object, Part::Main));
            drop(errors);
        });
        findings.linear(&format!("warnings of a {}", kind.kind), |many| {
            let object = of(many);
            let _ = (kind.warnings(&object), carob_api::support::warnings(kind, &object));
        });
    }
}

#[test]
fn owners_of_fields_are_found_in_linear_time() {
    let mut findings = Findings::default();
    for (kind, shape) in SHAPES {
        let kind = kind_named(kind);
        findings.linear(&format!("owners of a new {}", kind.kind), |many| {
            let mut object = shape(many);
            track_update(kind, None, &mut object, &manager("m", Operation::Update));
        });
        findings.linear(&format!("owners of a changed {}", kind.kind), |many| {
            let mut object = shape(many);
            track_update(kind, None, &mut object, &manager("m", Operation::Update));
            let before = object.clone();
            object["metadata"]["annotations"]["x"] = "y".into();
            track_update(kind, Some(&before), &mut object, &manager("n", Operation::Update));
        });
        findings.linear(&format!("apply of a {}", kind.kind), |many| {
            let config = shape(many);
            let first = apply(kind, None, &config, &manager("m", Operation::Apply), false).expect("applied").object;
            apply(kind, Some(&first), &config, &manager("m", Operation::Apply), false).expect("again");
            let less = shape(many / 2);
            apply(kind, Some(&first), &less, &manager("m", Operation::Apply), false).expect("less");
            let _ = apply(kind, Some(&first), &less, &manager("other", Operation::Apply), false);
        });
    }
}

#[test]
fn patches_take_linear_time() {
    let mut findings = Findings::default();
    for (kind, shape) in SHAPES {
        let kind = kind_named(kind);
        findings.linear(&format!("strategic patch of a {}", kind.kind), |many| {
            let doc = shape(many);
            strategic_merge(kind, &doc, doc.to_string().as_bytes()).expect("patched");
        });
        findings.linear(&format!("merge patch of a {}", kind.kind), |many| {
            let doc = shape(many);
            merge_patch(&doc, doc.to_string().as_bytes()).expect("patched");
        });
    }
    let clearing = |doc: &Value| -> Value {
        doc.as_object().expect("an object").keys().map(|key| (key.clone(), Value::Null)).collect::<Map<_, _>>().into()
    };
    findings.linear("merge patch that clears", |many| {
        let doc = map(many);
        let patch = json!({ "data": clearing(&doc["data"]) }).to_string();
        merge_patch(&doc, patch.as_bytes()).expect("patched");
    });
    findings.linear("strategic patch that clears", |many| {
        let doc = map(many);
        let patch = json!({ "data": clearing(&doc["data"]) }).to_string();
        strategic_merge(kind_named("ConfigMap"), &doc, patch.as_bytes()).expect("patched");
    });
    findings.linear("strategic patch that deletes items", |many| {
        let doc = containers(many);
        let gone: Vec<Value> = (0..many).map(|n| json!({"$patch": "delete", "name": format!("c{n}")})).collect();
        let patch = json!({ "spec": { "containers": gone } }).to_string();
        strategic_merge(kind_named("Pod"), &doc, patch.as_bytes()).expect("patched");
    });
    findings.linear("JSON patch that removes", |many| {
        let doc = map(many);
        let operations: Vec<Value> =
            (0..many.min(8_000)).map(|n| json!({"op": "remove", "path": format!("/data/key-{n}")})).collect();
        json_patch(&doc, Value::from(operations).to_string().as_bytes()).expect("patched");
    });
    findings.linear("JSON patch at the front of a list", |many| {
        let many = many.min(9_999);
        let operations: Vec<Value> = (0..many).map(|n| json!({"op": "add", "path": "/l/0", "value": n})).collect();
        json_patch(&json!({"l": []}), Value::from(operations).to_string().as_bytes()).expect("patched");
    });
}

#[test]
fn selectors_take_linear_time() {
    let mut findings = Findings::default();
    let labels = map(10_000)["metadata"]["labels"].clone();
    findings.linear("a selector of many requirements", |many| {
        let text = (0..many).map(|n| format!("key-{n}=v")).collect::<Vec<_>>().join(",");
        assert!(many > 10_000 || LabelSelector::parse(&text).expect("read").matches(Some(&labels)));
    });
    findings.linear("a selector of many values", |many| {
        let values = (0..many).map(|n| format!("x{n}")).collect::<Vec<_>>().join(",");
        LabelSelector::parse(&format!("a in ({values})")).expect("read").matches(Some(&labels));
    });
    findings.linear("a selector that is no selector", |many| {
        let _ = LabelSelector::parse(&"(".repeat(many));
        let _ = LabelSelector::parse(&"a,".repeat(many));
    });
}
