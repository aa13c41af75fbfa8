//! What makes pods and keeps them: apps, autoscaling, batch, policy.

use super::{ROW, SCALE, part};
use crate::kind::Kind;
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, part("status", ("apps", "v1", "Deployment"))],
        columns: table::deployment::COLUMNS,
        schema: "io.k8s.api.apps.v1.Deployment",
        strategy: strategy::deployment::STRATEGY,
        ..ROW
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, part("status", ("apps", "v1", "ReplicaSet"))],
        columns: table::replica_set::COLUMNS,
        schema: "io.k8s.api.apps.v1.ReplicaSet",
        strategy: strategy::replica_set::STRATEGY,
        ..ROW
    },
    Kind {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: &["all"],
        subresources: &[part("status", ("batch", "v1", "Job"))],
        columns: table::job::COLUMNS,
        schema: "io.k8s.api.batch.v1.Job",
        strategy: strategy::job::STRATEGY,
        ..ROW
    },
];
