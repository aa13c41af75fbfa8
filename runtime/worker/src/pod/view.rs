//! What others may see of the pod: who asks for its logs and streams, and for its containers' ids.

use super::actor::Actor;
use super::record::{Role, State};
use super::{ContainerView, PodView};

impl Actor {
    pub(super) fn publish_view(&self) {
        let containers = self.records.iter().zip(&self.controls).enumerate().map(|(index, (record, control))| {
            let container = self.container(index);
            ContainerView {
                name: record.name.clone(),
                init: record.role != Role::Main,
                running: control.live.as_ref().map(|live| live.id.clone()),
                attempt: record.starts.checked_sub(1),
                waiting: match &record.state {
                    State::Waiting { reason, message } => Some(message.clone().unwrap_or_else(|| reason.clone())),
                    _ => None,
                },
                tty: container.tty == Some(true),
                stdin: container.stdin == Some(true),
                stdin_once: container.stdin_once == Some(true),
            }
        });
        let view = PodView {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            address: self.sandbox.as_ref().and_then(|sandbox| Some(sandbox.address?.first)),
            host_network: self.spec().host_network == Some(true),
            logs: self.ctx.dirs.pod_logs(&self.namespace, &self.name, &self.uid),
            containers: containers.collect(),
        };
        self.view.send_if_modified(|old| {
            let changed = *old != view;
            if changed {
                *old = view;
            }
            changed
        });
    }
}
