//! Ephemeral containers: added to a pod that runs (`kubectl debug`), started once, perhaps among another's processes.

use super::actor::{Actor, Control};
use super::record::{Record, Role};
use carob_sandbox::ContainerId;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer};

impl Actor {
    /// Takes up those that the spec has and the records don't. None is ever removed from a spec.
    pub(super) fn take_up_ephemeral(&mut self) {
        let wanted = self.spec().ephemeral_containers.clone().unwrap_or_default();
        for container in wanted {
            if self.records.iter().any(|record| record.name == container.name) {
                continue;
            }
            let image = container.image.clone().unwrap_or_default();
            self.records.push(Record::new(&container.name, &image, Role::Ephemeral));
            self.controls.push(Control::default());
            self.ephemeral.push(as_container(container));
        }
    }

    /// The container whose processes this one is to see; the error is the kubelet's when it cannot be found.
    pub(super) fn target(&self, index: usize) -> Option<Result<ContainerId, String>> {
        let name = &self.records[index].name;
        let of = self.spec().ephemeral_containers.iter().flatten().find(|container| container.name == *name)?;
        let target = of.target_container_name.as_deref().filter(|target| !target.is_empty())?;
        // Where processes are shared anyway, they are the target's too.
        if self.spec().share_process_namespace == Some(true) || self.spec().host_pid == Some(true) {
            return None;
        }
        let place = self.records.iter().position(|record| record.name == target);
        let live = place.and_then(|place| self.controls[place].live.as_ref());
        Some(live.map(|live| live.id.clone()).ok_or_else(|| format!("unable to find target container {target}")))
    }
}

/// What an ephemeral container has in common with the others: everything but its target.
fn as_container(container: EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = container;
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}
