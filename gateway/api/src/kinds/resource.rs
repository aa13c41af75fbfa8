//! Devices: dynamic resource allocation.

use super::{ROW, part};
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "resource.k8s.io",
        kind: "DeviceClass",
        plural: "deviceclasses",
        singular: "deviceclass",
        scope: Scope::Cluster,
        columns: table::device::NAME_AND_AGE,
        schema: "io.k8s.api.resource.v1.DeviceClass",
        strategy: strategy::device::CLASS,
        ..ROW
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceClaim",
        plural: "resourceclaims",
        singular: "resourceclaim",
        subresources: &[part("status", ("resource.k8s.io", "v1", "ResourceClaim"))],
        columns: table::device::CLAIM,
        schema: "io.k8s.api.resource.v1.ResourceClaim",
        strategy: strategy::device::CLAIM,
        ..ROW
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceClaimTemplate",
        plural: "resourceclaimtemplates",
        singular: "resourceclaimtemplate",
        columns: table::device::NAME_AND_AGE,
        schema: "io.k8s.api.resource.v1.ResourceClaimTemplate",
        strategy: strategy::device::TEMPLATE,
        ..ROW
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceSlice",
        plural: "resourceslices",
        singular: "resourceslice",
        scope: Scope::Cluster,
        columns: table::device::SLICE,
        schema: "io.k8s.api.resource.v1.ResourceSlice",
        strategy: strategy::device::SLICE,
        ..ROW
    },
];
