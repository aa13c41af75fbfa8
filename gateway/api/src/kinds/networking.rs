//! Services beyond the core group: networking (ingress, policies, address ranges).

use super::{ROW, part};
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        scope: Scope::Cluster,
        columns: table::networking::INGRESS_CLASS,
        schema: "io.k8s.api.networking.v1.IngressClass",
        strategy: strategy::ingress::CLASS,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        subresources: &[part("status", ("networking.k8s.io", "v1", "Ingress"))],
        columns: table::networking::INGRESS,
        schema: "io.k8s.api.networking.v1.Ingress",
        strategy: strategy::ingress::STRATEGY,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        scope: Scope::Cluster,
        columns: table::networking::IP_ADDRESS,
        schema: "io.k8s.api.networking.v1.IPAddress",
        strategy: strategy::address::ADDRESS,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        columns: table::networking::NETWORK_POLICY,
        schema: "io.k8s.api.networking.v1.NetworkPolicy",
        strategy: strategy::network_policy::STRATEGY,
        ..ROW
    },
    Kind {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        scope: Scope::Cluster,
        subresources: &[part("status", ("networking.k8s.io", "v1", "ServiceCIDR"))],
        columns: table::networking::SERVICE_CIDR,
        schema: "io.k8s.api.networking.v1.ServiceCIDR",
        strategy: strategy::address::RANGE,
        ..ROW
    },
];
