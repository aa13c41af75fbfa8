//! `CronJob`.

use serde_json::{Value, json};

use super::{
    BASE, first_generation, generation_differs, job, name_of, object_at, pod_spec, set_default, set_default_text,
    spec_and_status,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, flag, get, str_at};
use crate::validation::metadata::non_negative;
use crate::validation::{cron, go, pod_warnings};

/// What is peculiar to `CronJob`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({});
        first_generation(object);
    },
    prepare_update: spec_and_status,
    validate,
    validate_update: |new, old, part| {
        if part == Part::Status { ErrorList::new() } else { spec_errors(new, Some(old)) }
    },
    warns_again: generation_differs,
    warnings: |object| {
        // The template's errors and warnings are at its path in the job's template.
        let Some(template) = dig(object, &["spec", "jobTemplate", "spec"]) else { return Vec::new() };
        pod_warnings::template_at(template, &Path::new("spec").child("jobTemplate").child("spec"))
    },
    ..BASE
};

/// The longest name: a job's has 11 characters more.
const LONGEST_NAME: usize = 52;
const POLICIES: [&str; 3] = ["Allow", "Forbid", "Replace"];

fn default(object: &mut Value) {
    object_at(object, "status");
    let Some(spec) = object_at(object, "spec") else { return };
    set_default_text(spec, "concurrencyPolicy", "Allow");
    set_default(spec, "suspend", false);
    set_default(spec, "successfulJobsHistoryLimit", 3);
    set_default(spec, "failedJobsHistoryLimit", 1);
    set_default(spec, "jobTemplate", json!({}));
    let Some(template) = spec.get_mut("jobTemplate").and_then(Value::as_object_mut) else { return };
    set_default(template, "metadata", json!({}));
    set_default(template, "spec", json!({}));
    // A job's own defaults come when it is made of the template.
    pod_spec::default_template(&mut template["spec"]);
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = spec_errors(object, None);
    let name = name_of(object);
    if name.len() > LONGEST_NAME {
        let why = format!("must be no more than {LONGEST_NAME} characters");
        errors.push(Path::new("metadata").child("name").invalid(name, why));
    }
    errors
}

fn spec_errors(object: &Value, old: Option<&Value>) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let before = old.and_then(|old| old.get("spec"));
    let mut errors = schedule(spec, before, &path.child("schedule"));
    errors.extend(non_negative(spec, "startingDeadlineSeconds", &path));
    if before.is_none_or(|before| get(before, "timeZone") != get(spec, "timeZone")) {
        errors.extend(time_zone(spec, &path.child("timeZone")));
    }
    let policy = str_at(spec, "concurrencyPolicy");
    let field = path.child("concurrencyPolicy");
    if policy.is_empty() {
        errors.push(field.required(""));
    } else if !POLICIES.contains(&policy) {
        errors.push(field.not_supported(policy, &POLICIES));
    }
    errors.extend(job_template(spec, &path.child("jobTemplate").child("spec")));
    errors.extend(non_negative(spec, "successfulJobsHistoryLimit", &path));
    errors.extend(non_negative(spec, "failedJobsHistoryLimit", &path));
    errors
}

fn schedule(spec: &Value, before: Option<&Value>, path: &Path) -> ErrorList {
    let schedule = str_at(spec, "schedule");
    if schedule.is_empty() {
        return vec![path.required("")];
    }
    let mut errors = ErrorList::new();
    if let Some(why) = cron::error(schedule) {
        errors.push(path.invalid(schedule, why));
    }
    if schedule.contains("TZ") {
        let had = before.is_some_and(|before| str_at(before, "schedule").contains("TZ"));
        if !had {
            errors.push(path.invalid(schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
        } else if get(spec, "timeZone").is_some() {
            errors.push(path.invalid(schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"));
        }
    }
    errors
}

fn time_zone(spec: &Value, path: &Path) -> ErrorList {
    let Some(zone) = get(spec, "timeZone").and_then(Value::as_str) else { return ErrorList::new() };
    if zone.is_empty() {
        return vec![path.invalid(zone, "timeZone must be nil or non-empty string")];
    }
    if zone.eq_ignore_ascii_case("Local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return vec![path.invalid(zone, why)];
    }
    if cron::is_time_zone(zone) {
        return ErrorList::new();
    }
    vec![path.invalid(zone, format!("unknown time zone {zone}"))]
}

fn job_template(spec: &Value, path: &Path) -> ErrorList {
    let job = dig(spec, &["jobTemplate", "spec"]).unwrap_or(&Value::Null);
    let mut errors = job::spec_errors(job, path);
    if let Some(selector) = get(job, "selector") {
        errors.push(path.child("selector").invalid(go::selector(selector), "`selector` will be auto-generated"));
    }
    if flag(job, "manualSelector") {
        errors.push(path.child("manualSelector").not_supported(true, &["nil", "false"]));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(change: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "nginx"}]}}}}}});
        for (field, value) in change.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        default(&mut object);
        object
    }

    fn causes(change: &Value) -> Vec<String> {
        validate(&job(change)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_template_has_no_defaults_of_a_job() {
        let spec = job(&json!({}))["spec"].clone();
        assert_eq!(spec["successfulJobsHistoryLimit"], 3);
        assert!(spec["jobTemplate"]["spec"].get("completionMode").is_none());
        assert!(causes(&json!({})).is_empty());
    }

    #[test]
    fn schedules_and_zones_are_known() {
        assert_eq!(causes(&json!({"schedule": ""})), ["spec.schedule: Required value"]);
        assert_eq!(
            causes(&json!({"schedule": "TZ=UTC * * * * *"})),
            ["spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone \
              field instead"]
        );
        assert_eq!(
            causes(&json!({"timeZone": "Nope/Zone"})),
            ["spec.timeZone: Invalid value: \"Nope/Zone\": unknown time zone Nope/Zone"]
        );
        assert!(causes(&json!({"timeZone": "Europe/Berlin", "schedule": "@every 1h"})).is_empty());
    }

    #[test]
    fn names_leave_room_for_those_of_jobs() {
        let mut object = job(&json!({}));
        object["metadata"]["name"] = json!("c".repeat(53));
        assert_eq!(validate(&object)[0].detail, "must be no more than 52 characters");
    }
}
