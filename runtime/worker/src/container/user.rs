//! Whom a container runs as: the spec's numbers over the image's names.

use super::ConfigError;
use carob_sandbox::User;
use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};

/// What the image knows of a user (its passwd and group files).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// What identity depends on.
pub(crate) struct Wishes<'a> {
    /// `namespace/name(uid)`, as error texts name the pod.
    pub pod: &'a str,
    pub container: &'a str,
    pub pod_context: Option<&'a PodSecurityContext>,
    pub context: Option<&'a SecurityContext>,
    /// `USER` of the image; empty is root.
    pub image_user: &'a str,
}

/// The identity, or why it may not be used. `resolve` reads names and groups in the image.
pub(crate) fn user(
    wishes: &Wishes<'_>,
    resolve: impl Fn(&str) -> Result<ImageUser, String>,
) -> Result<User, ConfigError> {
    let (pod, own) = (wishes.pod_context, wishes.context);
    let run_as_user = own.and_then(|c| c.run_as_user).or_else(|| pod.and_then(|p| p.run_as_user));
    let run_as_group = own.and_then(|c| c.run_as_group).or_else(|| pod.and_then(|p| p.run_as_group));
    let non_root = own.and_then(|c| c.run_as_non_root).or_else(|| pod.and_then(|p| p.run_as_non_root)).unwrap_or(false);

    let name = match run_as_user {
        Some(uid) => uid.to_string(),
        None => wishes.image_user.to_owned(),
    };
    if non_root {
        refuse_root(wishes, run_as_user)?;
    }
    let found = resolve(&name).map_err(ConfigError)?;
    let gid = match run_as_group {
        Some(gid) => number(gid)?,
        None => found.gid,
    };
    let strict = pod.and_then(|p| p.supplemental_groups_policy.as_deref()) == Some("Strict");
    // The primary group is always among them, and the image's primary group only as long as it is that.
    let mut groups = vec![gid];
    if !strict {
        groups.extend(found.groups.into_iter().filter(|group| *group != found.gid && *group != gid));
    }
    let given = pod.and_then(|p| p.supplemental_groups.as_ref()).into_iter().flatten();
    for group in given.copied().chain(pod.and_then(|p| p.fs_group)) {
        let group = number(group)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    Ok(User { uid: found.uid, gid, groups })
}

/// `runAsNonRoot`, with the kubelet's texts.
fn refuse_root(wishes: &Wishes<'_>, run_as_user: Option<i64>) -> Result<(), ConfigError> {
    let where_ = format!("(pod: \"{}\", container: {})", wishes.pod, wishes.container);
    match run_as_user {
        Some(0) => return Err(ConfigError(format!("container's runAsUser breaks non-root policy {where_}"))),
        Some(_) => return Ok(()),
        None => {}
    }
    let name = wishes.image_user.split(':').next().unwrap_or("");
    match name.parse::<u32>() {
        _ if name.is_empty() => {
            Err(ConfigError(format!("container has runAsNonRoot and image will run as root {where_}")))
        }
        Ok(0) => Err(ConfigError(format!("container has runAsNonRoot and image will run as root {where_}"))),
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {where_}"
        ))),
    }
}

fn number(id: i64) -> Result<u32, ConfigError> {
    u32::try_from(id).map_err(|_| ConfigError(format!("id {id} is out of range")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &str) -> Result<ImageUser, String> {
        match name {
            "" | "0" | "root" => Ok(ImageUser::default()),
            "nginx" | "101" => Ok(ImageUser { uid: 101, gid: 102, groups: vec![102, 103] }),
            "1000" => Ok(ImageUser { uid: 1000, gid: 0, groups: vec![] }),
            other => Err(format!("unable to find user {other}: no matching entries in passwd file")),
        }
    }

    fn wishes<'a>(pod: Option<&'a PodSecurityContext>, own: Option<&'a SecurityContext>, image: &'a str) -> Wishes<'a> {
        Wishes { pod: "p_ns(1)", container: "c", pod_context: pod, context: own, image_user: image }
    }

    #[test]
    fn the_containers_numbers_come_before_the_pods_and_those_before_the_image() {
        let pod = PodSecurityContext {
            run_as_user: Some(1000),
            run_as_group: Some(7),
            fs_group: Some(2000),
            supplemental_groups: Some(vec![3000]),
            ..PodSecurityContext::default()
        };
        let own = SecurityContext { run_as_user: Some(101), ..SecurityContext::default() };
        let got = user(&wishes(Some(&pod), Some(&own), "root"), resolve).unwrap();
        assert_eq!(got, User { uid: 101, gid: 7, groups: vec![7, 103, 3000, 2000] });
        let got = user(&wishes(None, None, "nginx"), resolve).unwrap();
        assert_eq!(got, User { uid: 101, gid: 102, groups: vec![102, 103] });
    }

    #[test]
    fn strict_groups_leave_the_images_groups_out() {
        let pod =
            PodSecurityContext { supplemental_groups_policy: Some("Strict".into()), ..PodSecurityContext::default() };
        assert_eq!(user(&wishes(Some(&pod), None, "nginx"), resolve).unwrap().groups, [102]);
    }

    #[test]
    fn run_as_non_root_refuses_with_the_kubelets_texts() {
        let non_root = SecurityContext { run_as_non_root: Some(true), ..SecurityContext::default() };
        for (image, text) in [
            ("", "container has runAsNonRoot and image will run as root (pod: \"p_ns(1)\", container: c)"),
            ("0:5", "container has runAsNonRoot and image will run as root (pod: \"p_ns(1)\", container: c)"),
            (
                "nginx",
                "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root (pod: \"p_ns(1)\", container: c)",
            ),
        ] {
            assert_eq!(user(&wishes(None, Some(&non_root), image), resolve).unwrap_err().0, text);
        }
        let zero = SecurityContext { run_as_non_root: Some(true), run_as_user: Some(0), ..SecurityContext::default() };
        assert_eq!(
            user(&wishes(None, Some(&zero), "1000"), resolve).unwrap_err().0,
            "container's runAsUser breaks non-root policy (pod: \"p_ns(1)\", container: c)"
        );
        assert!(user(&wishes(None, Some(&non_root), "1000"), resolve).is_ok());
    }
}
