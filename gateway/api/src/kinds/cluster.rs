//! How the parts of a cluster talk to each other: coordination, discovery, events, node, scheduling.

use super::ROW;
use crate::kind::Kind;
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
        stored_as: Some(("", "events")),
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
];
