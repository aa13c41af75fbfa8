//! What makes pods and keeps them: apps, autoscaling, batch, policy.

use super::{ROW, SCALE, part};
use crate::kind::Kind;
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "apps",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        columns: table::controller_revision::COLUMNS,
        schema: "io.k8s.api.apps.v1.ControllerRevision",
        strategy: strategy::controller_revision::STRATEGY,
        ..ROW
    },
    Kind {
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[part("status", ("apps", "v1", "DaemonSet"))],
        columns: table::daemon_set::COLUMNS,
        schema: "io.k8s.api.apps.v1.DaemonSet",
        strategy: strategy::daemon_set::STRATEGY,
        ..ROW
    },
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
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[SCALE, part("status", ("apps", "v1", "StatefulSet"))],
        columns: table::stateful_set::COLUMNS,
        schema: "io.k8s.api.apps.v1.StatefulSet",
        strategy: strategy::stateful_set::STRATEGY,
        ..ROW
    },
    Kind {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[part("status", ("autoscaling", "v2", "HorizontalPodAutoscaler"))],
        columns: table::horizontal_pod_autoscaler::COLUMNS,
        schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        strategy: strategy::horizontal_pod_autoscaler::STRATEGY,
        ..ROW
    },
    Kind {
        group: "autoscaling",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[part("status", ("autoscaling", "v1", "HorizontalPodAutoscaler"))],
        columns: table::horizontal_pod_autoscaler::COLUMNS_V1,
        schema: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        stored_as: Some(&strategy::horizontal_pod_autoscaler::STORED),
        strategy: strategy::horizontal_pod_autoscaler::STRATEGY_V1,
        ..ROW
    },
    Kind {
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[part("status", ("batch", "v1", "CronJob"))],
        columns: table::cron_job::COLUMNS,
        schema: "io.k8s.api.batch.v1.CronJob",
        strategy: strategy::cron_job::STRATEGY,
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
    Kind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        subresources: &[part("status", ("policy", "v1", "PodDisruptionBudget"))],
        columns: table::pod_disruption_budget::COLUMNS,
        schema: "io.k8s.api.policy.v1.PodDisruptionBudget",
        strategy: strategy::pod_disruption_budget::STRATEGY,
        ..ROW
    },
];
