//! How a container's process starts: command, variables, folder, limits, what it may do.

use anyhow::Result;
use peerpods_e2e::{Container, Scenario, Story, scenarios, v1};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        exit_codes_and_reasons_are_told,
        arguments_and_variables_arrive_unchanged,
        a_working_folder_is_made_when_it_is_missing,
        a_command_that_is_not_there_fails_to_start,
        a_command_that_may_not_be_run_fails_to_start,
        capabilities_are_added_and_dropped,
        no_new_privileges_holds,
        the_default_seccomp_profile_refuses_what_it_lists,
        a_seccomp_profile_of_the_node_is_obeyed,
        a_seccomp_profile_that_is_missing_is_refused,
        sysctls_of_the_pod_are_set,
        an_unsafe_sysctl_is_refused,
        limits_of_open_files_are_those_of_runc,
        masked_and_read_only_paths_are_so,
        the_root_can_be_read_only,
        the_devices_are_those_of_runc,
    ]
}

async fn exit_codes_and_reasons_are_told(story: Story) -> Result<()> {
    let pod = story.pod("codes").run().await?;
    for (name, script) in
        [("zero", "exit 0"), ("three", "exit 3"), ("killed", "sh -c 'kill -9 $$'; exit $?"), ("aborted", "sh -c 'kill -ABRT $$'; exit $?")]
    {
        pod.start(Container::script(name, script)).await?.ends().await?;
    }
    Ok(())
}

async fn arguments_and_variables_arrive_unchanged(story: Story) -> Result<()> {
    let pod = story.pod("words").run().await?;
    let container = Container::new("c", &["/bin/sh", "-c", "for a in \"$0\" \"$@\"; do printf '<%s>' \"$a\"; done; echo; env | sort"])
        .args(&["zero", "", "two words", "$HOME", "quo\"te", "grün", "-x"])
        .env("SIMPLE", "value")
        .env("EMPTY", "")
        .env("EQUALS", "a=b=c")
        .env("LINES", "one\ntwo")
        .env("PATH", "/bin:/opt/bin");
    pod.start(container).await?.ends().await?;
    Ok(())
}

async fn a_working_folder_is_made_when_it_is_missing(story: Story) -> Result<()> {
    let pod = story.pod("folder").run().await?;
    let container = Container::script("c", "pwd; stat -c '%a %u %g' .").with(|config| config.working_dir = "/not/there/yet".to_owned());
    pod.start(container).await?.ends().await?;
    Ok(())
}

async fn a_command_that_is_not_there_fails_to_start(story: Story) -> Result<()> {
    let pod = story.pod("nothing").run().await?;
    pod.refuses(Container::new("word", &["nosuch", "thing"]), &["exec: \"nosuch\": executable file not found in $PATH"]).await?;
    pod.refuses(Container::new("path", &["/opt/nosuch"]), &["/opt/nosuch", "no such file or directory"]).await?;
    let container = pod.start(Container::waiting("c")).await?;
    container.refuses(&["nosuch"], 10, &["exec: \"nosuch\": executable file not found in $PATH"]).await;
    container.refuses(&["/opt/nosuch"], 10, &["/opt/nosuch", "no such file or directory"]).await;
    container.prints("echo alive", "alive\n").await
}

async fn a_command_that_may_not_be_run_fails_to_start(story: Story) -> Result<()> {
    let pod = story.pod("forbidden").run().await?;
    pod.refuses(Container::new("file", &["/etc/passwd"]), &["exec: \"/etc/passwd\": permission denied"]).await?;
    pod.refuses(Container::new("folder", &["/etc"]), &["exec: \"/etc\": permission denied"]).await?;
    let container = pod.start(Container::waiting("c")).await?;
    container.refuses(&["/etc/passwd"], 10, &["exec: \"/etc/passwd\": permission denied"]).await;
    Ok(())
}

const CAPABILITIES: &str = "grep Cap /proc/self/status";

async fn capabilities_are_added_and_dropped(story: Story) -> Result<()> {
    let pod = story.pod("capabilities").run().await?;
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let capable = |name, add: &[&str], drop: &[&str]| {
        Container::script(name, CAPABILITIES).secured(|security| {
            security.capabilities =
                Some(v1::Capability { add_capabilities: words(add), drop_capabilities: words(drop), add_ambient_capabilities: Vec::new() });
        })
    };
    pod.start(capable("default", &[], &[])).await?.ends().await?;
    pod.start(capable("none", &[], &["ALL"])).await?.ends().await?;
    pod.start(capable("one", &["NET_BIND_SERVICE"], &["ALL"])).await?.ends().await?;
    pod.start(capable("more", &["NET_ADMIN", "SYS_TIME"], &["CHOWN"])).await?.ends().await?;
    pod.start(capable("user", &["NET_ADMIN"], &[]).user(1000, None)).await?.ends().await?;
    let chown = capable("act", &[], &["CHOWN"]).with(|config| {
        config.command = ["/bin/sh", "-c", "touch /tmp/f; chown 1 /tmp/f || echo refused"].map(str::to_owned).to_vec();
    });
    pod.start(chown).await?.ends().await?;
    let waiting = pod.start(capable("exec", &[], &["ALL"]).with(|c| c.command = Container::waiting("x").config.command)).await?;
    waiting.says(CAPABILITIES).await?;
    Ok(())
}

async fn no_new_privileges_holds(story: Story) -> Result<()> {
    let pod = story.pod("privileges").run().await?;
    let script = "grep NoNewPrivs /proc/self/status";
    pod.start(Container::script("without", script)).await?.ends().await?;
    let held = pod.start(Container::waiting("with").secured(|security| security.no_new_privs = true)).await?;
    held.prints(script, "NoNewPrivs:\t1\n").await
}

fn profile(kind: v1::security_profile::ProfileType, path: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

async fn the_default_seccomp_profile_refuses_what_it_lists(story: Story) -> Result<()> {
    use v1::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    let pod = story.pod("seccomp").run().await?;
    let script = "grep 'Seccomp:' /proc/self/status; unshare --user true && echo unshared || echo refused";
    for (name, kind) in [("default", RuntimeDefault), ("unconfined", Unconfined)] {
        let container = Container::script(name, script).secured(|security| security.seccomp = profile(kind, ""));
        pod.start(container).await?.ends().await?;
    }
    Ok(())
}

async fn a_seccomp_profile_of_the_node_is_obeyed(story: Story) -> Result<()> {
    let pod = story.pod("seccomp").run().await?;
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28},
        {"names":["kill"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":10,"op":"SCMP_CMP_EQ"}]}]}"#;
    let path = story.kubelet().file(pod.uid(), "seccomp.json", text.as_bytes())?;
    let script = "mkdir /tmp/x; kill -USR1 $$ || echo no signal; kill -CONT $$ && echo signal";
    let container = Container::script("c", script)
        .secured(|security| security.seccomp = profile(v1::security_profile::ProfileType::Localhost, &path.display().to_string()));
    let container = container.with(|config| config.command[2] += "; sleep 1000");
    let container = pod.start(container).await?;
    container.logs("signal\n").await?;
    container.says("mkdir /tmp/y || echo refused").await?;
    container.shows_log()?;
    Ok(())
}

async fn a_seccomp_profile_that_is_missing_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("seccomp").run().await?;
    let container = Container::script("c", "true")
        .secured(|security| security.seccomp = profile(v1::security_profile::ProfileType::Localhost, "/nonexistent/profile.json"));
    pod.refuses(container, &["/nonexistent/profile.json"]).await
}

async fn sysctls_of_the_pod_are_set(story: Story) -> Result<()> {
    let pod = story
        .pod("sysctls")
        .sysctl("kernel.shm_rmid_forced", "1")
        .sysctl("net.ipv4.ip_local_port_range", "20000 30000")
        .sysctl("net.ipv4.tcp_syncookies", "0")
        .run()
        .await?;
    let script =
        "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range net/ipv4/tcp_syncookies net/ipv4/ip_unprivileged_port_start";
    let container = pod.start(Container::script("c", script)).await?;
    container.ends().await?;
    Ok(())
}

async fn an_unsafe_sysctl_is_refused(story: Story) -> Result<()> {
    // Not in any namespace: the kubelet refuses it too, when it is asked to.
    match story.pod("sysctls").sysctl("vm.swappiness", "1").try_run().await {
        Ok(_) => story.record("sandbox", "ready"),
        Err(status) => story.record_error("sandbox", &status, &["vm.swappiness"]),
    }
    Ok(())
}

async fn limits_of_open_files_are_those_of_runc(story: Story) -> Result<()> {
    let pod = story.pod("limits").run().await?;
    pod.start(Container::script("c", "ulimit -a | sort")).await?.ends().await?;
    Ok(())
}

async fn masked_and_read_only_paths_are_so(story: Story) -> Result<()> {
    let pod = story.pod("masked").run().await?;
    let container = pod.start(Container::waiting("c")).await?;
    container.says("wc -c < /proc/keys; ls /sys/firmware | wc -l; head -c 4 /proc/timer_list | wc -c").await?;
    container.says("echo 1 > /proc/sys/kernel/shm_rmid_forced").await?;
    container.says("echo b > /proc/sysrq-trigger").await?;
    container.says("touch /sys/x; mkdir /sys/fs/cgroup/x").await?;
    let bare = Container::script("bare", "wc -c < /proc/keys").secured(|security| {
        security.masked_paths = vec!["/etc/passwd".to_owned(), "/proc/keys".to_owned(), "/tmp".to_owned()];
        security.readonly_paths = vec!["/root".to_owned()];
    });
    let bare = bare.with(|config| config.command[2] += "; cat /etc/passwd; touch /tmp/x; touch /root/x");
    pod.start(bare).await?.ends().await?;
    Ok(())
}

async fn the_root_can_be_read_only(story: Story) -> Result<()> {
    let pod = story.pod("readonly").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    let container = Container::waiting("c").secured(|security| security.readonly_rootfs = true).mount(&scratch, "/scratch");
    let container = pod.start(container).await?;
    container.says("touch /x; touch /etc/x; echo a > /tmp/x").await?;
    container.prints("touch /scratch/x /dev/shm/x && echo written", "written\n").await
}

async fn the_devices_are_those_of_runc(story: Story) -> Result<()> {
    let pod = story.pod("devices").run().await?;
    let container = pod.start(Container::waiting("c")).await?;
    container
        .says("cd /dev; ls | sort; stat -c '%n %F %a %t %T' null zero full random urandom tty ptmx; for l in fd stdin stdout stderr; do readlink $l; done")
        .await?;
    container.says("head -c 4 /dev/zero | wc -c; echo x > /dev/full; head -c 8 /dev/urandom | wc -c; mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg").await?;
    container.says("cat /proc/self/oom_score_adj; mount | grep -c ' /dev/shm '; df /dev/shm | awk '{print $2}'").await?;
    Ok(())
}
