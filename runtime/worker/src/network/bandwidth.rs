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
        let bits = Quantity::parse(text).map_err(|error| error.to_string())?.value_ceil();
        if bits < LEAST {
            return Err("resource is unreasonably small (< 1kbit)".to_owned());
        }
        if bits > MOST {
            return Err("resource is unreasonably large (> 1Pbit)".to_owned());
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
        assert_eq!(of(EGRESS, "999"), Err("resource is unreasonably small (< 1kbit)".to_owned()));
        assert_eq!(of(EGRESS, "2P"), Err("resource is unreasonably large (> 1Pbit)".to_owned()));
        assert!(of(EGRESS, "fast").is_err());
    }
}
