//! How fast a pod may send and receive, as its annotations say. Texts are Kubernetes' own (`pkg/util/bandwidth`).

use carob_api::quantity::Quantity;
use carob_network::Bandwidth;
use k8s_openapi::api::core::v1::Pod;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits per second.
const LEAST: i64 = 1_000;
const MOST: i64 = 1_000_000_000_000_000;

/// Both directions.
pub(crate) fn of(pod: &Pod) -> Result<Bandwidth, String> {
    let read = |key: &str| -> Result<Option<u64>, String> {
        let Some(text) = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)) else {
            return Ok(None);
        };
        let wrong = |why: &str| format!("annotation {key}: {text:?}: {why}");
        let bits = Quantity::parse(text).map_err(|error| wrong(&error.to_string()))?.value_ceil();
        if bits < LEAST {
            return Err(wrong("resource is unreasonably small (< 1kbit)"));
        }
        if bits > MOST {
            return Err(wrong("resource is unreasonably large (> 1Pbit)"));
        }
        Ok(Some(bits.unsigned_abs()))
    };
    Ok(Bandwidth { ingress: read(INGRESS)?, egress: read(EGRESS)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    #[test]
    fn annotations_are_quantities_of_bits_within_reason() {
        let of = |key: &str, text: &str| {
            let annotations = Some([(key.to_owned(), text.to_owned())].into());
            of(&Pod { metadata: ObjectMeta { annotations, ..ObjectMeta::default() }, ..Pod::default() })
        };
        assert_eq!(of(INGRESS, "10M"), Ok(Bandwidth { ingress: Some(10_000_000), egress: None }));
        assert_eq!(of(EGRESS, "1Ki"), Ok(Bandwidth { ingress: None, egress: Some(1024) }));
        assert_eq!(of("other", "fast"), Ok(Bandwidth::default()));
        let small = "annotation kubernetes.io/egress-bandwidth: \"999\": resource is unreasonably small (< 1kbit)";
        assert_eq!(of(EGRESS, "999"), Err(small.to_owned()));
        assert!(of(EGRESS, "2P").unwrap_err().ends_with("resource is unreasonably large (> 1Pbit)"));
        assert!(of(EGRESS, "fast").is_err());
    }
}
