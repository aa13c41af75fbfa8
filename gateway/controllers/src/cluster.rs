//! What the controllers share: a copy of the objects; and what each has for itself: a client and a voice.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::networking::v1::IPAddress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Client;
use kube::runtime::watcher;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::informer::Informer;
use crate::inventory::Inventory;

/// Which objects of a kind are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// Those of one name.
    Named(&'static str),
    /// Those of one namespace.
    In(&'static str),
}

impl Part {
    fn config(self) -> watcher::Config {
        match self {
            Self::All => watcher::Config::default(),
            Self::Named(name) => watcher::Config::default().fields(&format!("metadata.name={name}")),
            Self::In(namespace) => watcher::Config::default().fields(&format!("metadata.namespace={namespace}")),
        }
    }
}

macro_rules! informers {
    ($($field:ident: $kind:ty = $part:expr;)*) => {
        /// Clones share the copy.
        #[derive(Clone)]
        pub(crate) struct Cluster {
            pub(crate) client: Client,
            pub(crate) events: Recorder,
            $(pub(crate) $field: Informer<$kind>,)*
        }

        impl Cluster {
            pub(crate) fn new(client: Client) -> Self {
                Self { events: Recorder::new(client.clone()), client, $($field: Informer::new(),)* }
            }

            /// Begins to follow the API.
            pub(crate) fn start(&self, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
                $(tasks.spawn(self.$field.clone().run(self.client.clone(), $part.config(), stop.clone()));)*
            }

            /// Waits until the copy of everything is complete.
            pub(crate) async fn synced(&self) {
                $(self.$field.synced().await;)*
            }

            /// Has the inventory hear of all that is followed whole. Names these kinds: plural and group.
            pub(crate) fn tell(&self, inventory: &Inventory) -> Vec<(String, String)> {
                let mut told = Vec::new();
                $(if $part == Part::All {
                    told.extend(inventory.follow(&self.$field));
                })*
                told
            }
        }
    };
}

informers! {
    pods: Pod = Part::All;
    nodes: Node = Part::All;
    namespaces: Namespace = Part::All;
    services: Service = Part::All;
    ip_addresses: IPAddress = Part::All;
    endpoints: Endpoints = Part::All;
    endpoint_slices: EndpointSlice = Part::All;
    service_accounts: ServiceAccount = Part::Named("default");
    root_cas: ConfigMap = Part::Named("kube-root-ca.crt");
    replica_sets: ReplicaSet = Part::All;
    replication_controllers: ReplicationController = Part::All;
    deployments: Deployment = Part::All;
    stateful_sets: StatefulSet = Part::All;
    daemon_sets: DaemonSet = Part::All;
    revisions: ControllerRevision = Part::All;
    jobs: Job = Part::All;
    cron_jobs: CronJob = Part::All;
    budgets: PodDisruptionBudget = Part::All;
    autoscalers: HorizontalPodAutoscaler = Part::All;
    quotas: ResourceQuota = Part::All;
    claims: PersistentVolumeClaim = Part::All;
    volumes: PersistentVolume = Part::All;
    storage_classes: StorageClass = Part::All;
    attributes_classes: VolumeAttributesClass = Part::All;
    node_leases: Lease = Part::In("kube-node-lease");
    signing_requests: CertificateSigningRequest = Part::All;
    cluster_roles: ClusterRole = Part::All;
    flow_schemas: FlowSchema = Part::All;
    priority_levels: PriorityLevelConfiguration = Part::All;
    policies: ValidatingAdmissionPolicy = Part::All;
    definitions: CustomResourceDefinition = Part::All;
    apis: APIService = Part::All;
}

impl Cluster {
    /// The same copy, with a client of one's own.
    pub(crate) fn with_client(&self, client: Client) -> Self {
        Self { events: Recorder::new(client.clone()), client, ..self.clone() }
    }
}
