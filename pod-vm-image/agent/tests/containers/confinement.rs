//! What a process may do and how it begins: filters of system calls, capabilities, environment, working directory.

use anyhow::{Context as _, Result, ensure};
use peerpods_protos::agent::CreateContainerRequest;
use peerpods_protos::oci;

use crate::world::{Pod, mount_entry, process, rpc, shell};

fn process_of(request: &mut CreateContainerRequest) -> Result<&mut oci::Process> {
    request.OCI.as_mut().and_then(|spec| spec.Process.as_mut()).context("process")
}

fn user(uid: u32, gid: u32, groups: &[u32]) -> oci::User {
    let mut user = oci::User::new();
    (user.UID, user.GID, user.AdditionalGids) = (uid, gid, groups.to_vec());
    user
}

fn rule(names: &[&str], action: &str, errno: Option<u32>, args: Vec<oci::LinuxSeccompArg>) -> oci::LinuxSyscall {
    let mut rule = oci::LinuxSyscall::new();
    rule.Names = names.iter().map(|name| (*name).to_owned()).collect();
    action.clone_into(&mut rule.Action);
    if let Some(errno) = errno {
        rule.set_errnoret(errno);
    }
    rule.Args = args;
    rule
}

fn filtered(mut request: CreateContainerRequest, no_new_privileges: bool) -> Result<CreateContainerRequest> {
    let mut is_usr1 = oci::LinuxSeccompArg::new();
    (is_usr1.Index, is_usr1.Value, is_usr1.Op) = (1, 10, "SCMP_CMP_EQ".to_owned());
    let mut profile = oci::LinuxSeccomp::new();
    "SCMP_ACT_ALLOW".clone_into(&mut profile.DefaultAction);
    profile.Architectures = vec!["SCMP_ARCH_X86_64".to_owned(), "SCMP_ARCH_X86".to_owned()];
    profile.Syscalls = vec![
        rule(&["mkdir", "mkdirat", "no_such_call"], "SCMP_ACT_ERRNO", Some(28), Vec::new()),
        rule(&["kill"], "SCMP_ACT_ERRNO", None, vec![is_usr1]),
    ];
    process_of(&mut request)?.NoNewPrivileges = no_new_privileges;
    request.OCI.as_mut().and_then(|spec| spec.Linux.as_mut()).context("linux")?.Seccomp = Some(profile).into();
    Ok(request)
}

pub(crate) async fn seccomp_profiles_hold_for_all_processes() -> Result<()> {
    let pod = Pod::start().await?;
    let script = "mkdir /tmp/x; kill -USR1 $$ || echo no signal; kill -CONT $$ && echo signal; \
        while read a b; do case $a in Seccomp:|NoNewPrivs:) echo $a $b;; esac; done < /proc/self/status";
    for (id, no_new_privileges) in [("c1", false), ("c2", true)] {
        for (uid, exec_id) in [(0, "e1"), (1000, "e2")] {
            let id = format!("{id}-{uid}");
            let mut request = filtered(shell(&id, &format!("{script}; sleep 1000")), no_new_privileges)?;
            process_of(&mut request)?.User = Some(user(uid, uid, &[])).into();
            pod.run(&request).await?;
            let shown = pod.read_until(&id, "", "Seccomp: 2\n").await?;
            let expected = format!("no signal\nsignal\nNoNewPrivs: {}\nSeccomp: 2\n", u8::from(no_new_privileges));
            ensure!(shown == expected, "{id}: {shown}");
            let ended = pod.exec_script(&id, exec_id, script).await?;
            ensure!(ended.stdout == expected && ended.stderr.contains("No space left on device"), "{id}: {ended:?}");
        }
    }
    pod.destroy().await
}

pub(crate) async fn profiles_that_cannot_be_applied_are_refused() -> Result<()> {
    let pod = Pod::start().await?;
    let mut request = filtered(shell("c1", "true"), false)?;
    let linux = request.OCI.as_mut().and_then(|spec| spec.Linux.as_mut()).context("linux")?;
    linux.Seccomp.as_mut().context("profile")?.Syscalls.push(rule(&["open"], "SCMP_ACT_NOTIFY", None, Vec::new()));
    let refused = pod.rpc.create_container(rpc(), &request).await;
    ensure!(format!("{refused:?}").contains("SCMP_ACT_NOTIFY is not supported in a pod VM"), "{refused:?}");
    pod.destroy().await
}

pub(crate) async fn capabilities_are_exactly_those_asked_for() -> Result<()> {
    let pod = Pod::start().await?;
    let show = "while read a b; do case $a in Cap*) echo $a $b;; esac; done < /proc/self/status";
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut sets = oci::LinuxCapabilities::new();
    sets.Bounding = names(&["CHOWN", "NET_BIND_SERVICE", "NET_RAW", "KILL"]);
    sets.Permitted = names(&["CHOWN", "NET_BIND_SERVICE", "NET_RAW"]);
    sets.Effective = names(&["CHOWN", "NET_BIND_SERVICE"]);
    sets.Inheritable = names(&["NET_BIND_SERVICE", "NET_RAW"]);
    sets.Ambient = names(&["NET_BIND_SERVICE"]);
    let mut request = shell("c1", &format!("{show}; echo end; sleep 1000"));
    process_of(&mut request)?.Capabilities = Some(sets).into();
    process_of(&mut request)?.User = Some(user(1000, 1000, &[])).into();
    pod.run(&request).await?;
    let bits = |numbers: &[u32]| numbers.iter().fold(0_u64, |bits, number| bits | 1 << number);
    let expected = |inheritable: u64, permitted: u64, bounding: u64, ambient: u64| {
        format!(
            "CapInh: {inheritable:016x}\nCapPrm: {permitted:016x}\nCapEff: {permitted:016x}\nCapBnd: {bounding:016x}\nCapAmb: {ambient:016x}\n"
        )
    };
    let (bind, raw) = (bits(&[10]), bits(&[10, 13]));
    let shown = pod.read_until("c1", "", "end\n").await?;
    let kept = expected(raw, bind, bits(&[0, 5, 10, 13]), bind) + "end\n";
    ensure!(shown == kept, "a user keeps what is ambient: {shown}");

    let mut none = shell("c2", show);
    process_of(&mut none)?.Capabilities = Some(oci::LinuxCapabilities::new()).into();
    pod.run(&none).await?;
    ensure!(pod.finish("c2", "").await?.stdout == expected(0, 0, 0, 0), "none is none, for root too");
    pod.destroy().await
}

pub(crate) async fn processes_begin_as_with_runc() -> Result<()> {
    let pod = Pod::start().await?;
    let volume = format!("{}/shared/containers/passthrough/x/rootfs/local/v", crate::world::SHARE);
    let mut request = shell("c1", "pwd; stat -c '%a %u %g' . ..; id -G; echo $HOME; echo to stdout > /dev/stdout; umask; sleep 1000");
    {
        let process = process_of(&mut request)?;
        process.User = Some(user(1000, 1001, &[])).into();
        "/volume/made/deep".clone_into(&mut process.Cwd);
    }
    request.storages.push(crate::world::storage("local", "local", &volume, &["mode=0755"]));
    request.OCI.as_mut().context("spec")?.Mounts.push(mount_entry("/volume", &volume, "local", &["rbind"]));
    pod.run(&request).await?;
    let shown = pod.read_until("c1", "", "0022\n").await?;
    ensure!(shown == "/volume/made/deep\n755 0 0\n755 0 0\n1001\n/\nto stdout\n0022\n", "{shown}");

    // An exec does not make its folder.
    let mut elsewhere = process(&["/bin/true"]);
    "/not/there".clone_into(&mut elsewhere.Cwd);
    let refused = format!("{:?}", pod.exec("c1", "e1", elsewhere).await);
    ensure!(refused.contains(r#"chdir to cwd (\"/not/there\") set in config.json failed: no such file or directory"#), "{refused}");
    let mut bad = process(&["/bin/true"]);
    bad.Env.push("NOEQ".to_owned());
    let refused = format!("{:?}", pod.exec("c1", "e2", bad).await);
    ensure!(refused.contains(r#"error during container init: invalid environment variable: \"NOEQ\""#), "{refused}");
    let mut doubled = process(&["/bin/busybox", "env"]);
    doubled.Env = ["B=1", "A=2", "B=3", "HOME="].map(str::to_owned).to_vec();
    pod.exec("c1", "e3", doubled).await?;
    ensure!(pod.finish("c1", "e3").await?.stdout.starts_with("B=3\nA=2\nHOME=/\n"));
    pod.destroy().await
}

pub(crate) async fn programs_that_cannot_run_are_told_as_by_runc() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "echo text > /tmp/text; busybox chmod 755 /tmp/text; echo ready; sleep 1000")).await?;
    pod.read_until("c1", "", "ready\n").await?;
    for (program, text) in [
        ("nosuch", r#"exec: \"nosuch\": executable file not found in $PATH"#),
        ("not-executable", r#"exec: \"not-executable\": executable file not found in $PATH"#),
        ("", r#"exec: \"\": executable file not found in $PATH"#),
        ("./nosuch", r#"exec: \"./nosuch\": stat ./nosuch: no such file or directory"#),
        ("/bin/not-executable", r#"exec: \"/bin/not-executable\": permission denied"#),
        ("/etc", r#"exec: \"/etc\": permission denied"#),
        ("/bin/busybox/x", r#"exec: \"/bin/busybox/x\": stat /bin/busybox/x: not a directory"#),
        ("/tmp/text", "exec /tmp/text: exec format error"),
    ] {
        let refused = format!("{:?}", pod.exec("c1", "e1", process(&[program])).await);
        let expected = format!("OCI runtime exec failed: exec failed: unable to start container process: {text}\"");
        ensure!(refused.contains(&expected), "{program}: {refused}");
    }
    // What only the kernel finds out about a first process comes after its start, on its standard error.
    let mut request = shell("c2", "");
    process_of(&mut request)?.Args = vec!["/bin/text".to_owned()];
    let text = pod.copy("c2-0123456789abcdef-text", 0o100_755, b"text\n").await?;
    request.OCI.as_mut().context("spec")?.Mounts.push(mount_entry("/bin/text", &text, "bind", &["rbind"]));
    pod.run(&request).await?;
    let ended = pod.finish("c2", "").await?;
    ensure!(ended.stderr == "exec /bin/text: exec format error\n" && ended.status == 1, "{ended:?}");
    pod.destroy().await
}
