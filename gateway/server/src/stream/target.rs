//! Where a stream leads: the Pod's node, and the path on its worker.

use carob_api::field::{ErrorList, FieldError, Path};
use carob_api::status::Status;
use serde_json::Value;

use super::Stream;
use crate::call::Call;
use crate::handlers::get;
use crate::objects::{self, text};

/// A worker and what it is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub node: String,
    /// Path and query on the worker.
    pub uri: String,
}

/// Where the stream of a call leads; none for the log of a Pod without a node.
pub(crate) async fn resolve(call: &Call, stream: Stream) -> Result<Option<Target>, Status> {
    if stream == Stream::Log {
        check_log_options(call)?;
    }
    let entry = get::find(call).await?;
    let pod = objects::decode(&entry.value)?;
    let name = call.name();
    let container = match stream {
        Stream::PortForward => None,
        _ => Some(container(&pod, name, call.query.text("container"))?),
    };
    let node = text(&pod, "/spec/nodeName");
    if node.is_empty() {
        return match stream {
            Stream::Log => Ok(None),
            _ => Err(Status::bad_request(format!("pod {name} does not have a host assigned"))),
        };
    }
    if let Some(container) = &container
        && stream == Stream::Log
    {
        check_started(call, &pod, container)?;
    }
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let path = match (stream, &container) {
        (Stream::PortForward, _) | (_, None) => format!("/portForward/{}/{}", encode(namespace), encode(name)),
        (stream, Some(container)) => {
            let what = match stream {
                Stream::Exec => "exec",
                Stream::Attach => "attach",
                _ => "containerLogs",
            };
            format!("/{what}/{}/{}/{}", encode(namespace), encode(name), encode(container))
        }
    };
    let rest: Vec<&str> = call
        .raw_query
        .split('&')
        .filter(|pair| !pair.is_empty() && pair.split('=').next() != Some("container"))
        .collect();
    let uri = if rest.is_empty() { path } else { format!("{path}?{}", rest.join("&")) };
    Ok(Some(Target { node: node.to_owned(), uri }))
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let list = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
    list.into_iter().flatten().map(|container| text(container, "/name")).collect()
}

/// The container that is meant: the one that is named, or the only one.
fn container(pod: &Value, pod_name: &str, asked: Option<&str>) -> Result<String, Status> {
    let containers = names(pod, "containers");
    let initial = names(pod, "initContainers");
    if let Some(asked) = asked {
        let ephemeral = names(pod, "ephemeralContainers");
        if containers.contains(&asked) || initial.contains(&asked) || ephemeral.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")));
    }
    match containers.as_slice() {
        [one] => Ok((*one).to_owned()),
        several => {
            let choice = match several {
                [] => String::new(),
                several => format!(", choose one of: [{}]", several.join(" ")),
            };
            let or = match initial.as_slice() {
                [] => String::new(),
                initial => format!(" or one of the init containers: [{}]", initial.join(" ")),
            };
            Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}{choice}{or}")))
        }
    }
}

/// 400 for the log of a container that has never run.
fn check_started(call: &Call, pod: &Value, container: &str) -> Result<(), Status> {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let status = lists
        .iter()
        .filter_map(|list| pod.pointer(&format!("/status/{list}")).and_then(Value::as_array))
        .flatten()
        .find(|status| text(status, "/name") == container);
    let Some(status) = status else { return Ok(()) };
    let ended = status.pointer("/lastState/terminated").is_some_and(|state| !state.is_null());
    let name = call.name();
    if call.query.is_set("previous") && !ended {
        return Err(Status::bad_request(format!(
            "previous terminated container {container:?} in pod {name:?} not found"
        )));
    }
    let Some(waiting) = status.pointer("/state/waiting").filter(|state| !state.is_null()) else { return Ok(()) };
    if ended {
        return Ok(());
    }
    let reason = match text(waiting, "/reason") {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    let message = match text(waiting, "/reason") {
        "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
        "ErrImagePull" => "image can't be pulled".to_owned(),
        _ => String::new(),
    };
    if message.is_empty() {
        Err(Status::bad_request(format!("container {container:?} in pod {name:?} is waiting to start{reason}")))
    } else {
        Err(Status::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {message}")))
    }
}

fn check_log_options(call: &Call) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let minimums = [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)];
    for (name, minimum) in minimums {
        let Some(value) = call.query.integer(name)? else { continue };
        if value < minimum {
            let words = if minimum == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(Path::new(name).invalid(value, words));
        }
    }
    let since_time = call.query.text("sinceTime");
    if since_time.is_some() && call.query.text("sinceSeconds").is_some() {
        let error: FieldError = Path::root().forbidden("at most one of `sinceTime` or `sinceSeconds` may be specified");
        errors.push(error);
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(("", "PodLogOptions"), call.name(), errors))
}

/// A path segment.
fn encode(text: &str) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_only_container_is_meant_and_of_several_one_must_be_named() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "p", None).expect("the only one"), "a");
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container(&two, "p", None).expect_err("ambiguous").message(),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&two, "p", Some("i")).expect("named"), "i");
        assert_eq!(
            container(&two, "p", Some("z")).expect_err("unknown").message(),
            "container z is not valid for pod p"
        );
    }

    #[test]
    fn a_segment_cannot_lead_to_another_path() {
        assert_eq!(encode("../x?y#z"), "..%2Fx%3Fy%23z");
    }
}
