//! How the parts of a cluster talk to each other: coordination, discovery, events, node, scheduling.

use super::ROW;
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        columns: table::event::COLUMNS,
        schema: "io.k8s.api.events.v1.Event",
        stored_as: Some(&strategy::event::STORED),
        strategy: strategy::event::EVENTS_STRATEGY,
        ..ROW
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        columns: table::lease::COLUMNS,
        schema: "io.k8s.api.coordination.v1.Lease",
        strategy: strategy::lease::STRATEGY,
        ..ROW
    },
    Kind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        scope: Scope::Cluster,
        columns: table::class::PRIORITY,
        schema: "io.k8s.api.scheduling.v1.PriorityClass",
        strategy: strategy::priority_class::STRATEGY,
        ..ROW
    },
    Kind {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        scope: Scope::Cluster,
        columns: table::class::RUNTIME,
        schema: "io.k8s.api.node.v1.RuntimeClass",
        strategy: strategy::runtime_class::STRATEGY,
        ..ROW
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        columns: table::networking::ENDPOINT_SLICE,
        schema: "io.k8s.api.discovery.v1.EndpointSlice",
        strategy: strategy::endpoint_slice::STRATEGY,
        ..ROW
    },
];
