//! Amounts of resources by name, and what Pods ask for of them.

use std::collections::BTreeMap;

use carob_api::quantity::Quantity;
use serde_json::{Map, Value};

/// Amounts by the name of what they are of.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a list such as `spec.hard` or `resources.requests`.
pub(super) fn read(list: Option<&Value>) -> Amounts {
    let list = list.and_then(Value::as_object).into_iter().flatten();
    list.filter_map(|(name, amount)| Some((name.clone(), parse(amount)?))).collect()
}

/// An amount, which may be written as a number.
pub(super) fn parse(amount: &Value) -> Option<Quantity> {
    match amount {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// The list as it is stored.
pub(super) fn write(amounts: &Amounts) -> Value {
    Value::Object(amounts.iter().map(|(name, amount)| (name.clone(), amount.canonical().into())).collect::<Map<_, _>>())
}

/// `cpu=1,memory=2Gi`
pub(super) fn shown(amounts: &Amounts) -> String {
    let shown = amounts.iter().map(|(name, amount)| format!("{name}={}", amount.canonical()));
    shown.collect::<Vec<_>>().join(",")
}

/// Adds amounts to others.
pub(super) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).copied().unwrap_or(Quantity::ZERO) + *amount;
        to.insert(name.clone(), sum);
    }
}

fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        if to.get(name).is_none_or(|known| known < amount) {
            to.insert(name.clone(), *amount);
        }
    }
}

/// What a Pod asks for in all (`requests`) or may use (`limits`): its containers together, or the most demanding step of
/// their start, and its overhead.
pub(super) fn of_pod(pod: &Value, which: &str) -> Amounts {
    let list = |name: &str| pod.pointer(&format!("/spec/{name}")).and_then(Value::as_array).into_iter().flatten();
    let of = |container: &Value| read(container.pointer(&format!("/resources/{which}")));
    let mut all = Amounts::new();
    for container in list("containers") {
        add(&mut all, &of(container));
    }
    // Init containers run one after the other, beside those before them that go on running.
    let mut running = Amounts::new();
    let mut peak = Amounts::new();
    for container in list("initContainers") {
        let own = of(container);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut all, &own);
            add(&mut running, &own);
            raise(&mut peak, &running);
        } else {
            let mut step = running.clone();
            add(&mut step, &own);
            raise(&mut peak, &step);
        }
    }
    raise(&mut all, &peak);
    // Of the Pod itself, where it says so, for what can be asked for so.
    for (name, amount) in read(pod.pointer(&format!("/spec/resources/{which}"))) {
        all.insert(name, amount);
    }
    let overhead = read(pod.pointer("/spec/overhead"));
    let overhead: Amounts =
        overhead.into_iter().filter(|(name, _)| which == "requests" || all.contains_key(name)).collect();
    add(&mut all, &overhead);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_asks_for_its_containers_or_its_most_demanding_start() {
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "64Mi"}});
        let pod = json!({"spec": {
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"resources": resources("200m"), "restartPolicy": "Always"},
                {"resources": resources("1")}],
            "containers": [{"resources": resources("100m")}, {"resources": resources("100m")}]}});
        let asked = of_pod(&pod, "requests");
        assert_eq!(shown(&asked), "cpu=1210m,memory=192Mi");
        assert!(of_pod(&pod, "limits").is_empty());
    }
}
