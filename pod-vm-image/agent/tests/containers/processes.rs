//! Output, input, terminals, signals and what a process may do.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_protos::agent::TtyWinResizeRequest;
use peerpods_protos::oci;
use ttrpc::Code;

use crate::world::{Pod, SANDBOX, process, rpc, shell};

fn code<T>(result: ttrpc::Result<T>) -> Result<Code> {
    match result {
        Ok(_) => bail!("it worked"),
        Err(ttrpc::Error::RpcStatus(status)) => Ok(status.code.enum_value_or_default()),
        Err(other) => bail!("{other}"),
    }
}

pub(crate) async fn all_output_arrives_before_its_end() -> Result<()> {
    const BYTES: usize = 10 << 20;
    let pod = Pod::start().await?;
    let script = format!("head -c {BYTES} /dev/zero | tr '\\0' x; echo -n end >&2; exit 5");
    let ended = pod.script("c1", &script).await?;
    ensure!(ended.stdout.len() == BYTES && ended.stdout.bytes().all(|byte| byte == b'x'), "{} bytes", ended.stdout.len());
    ensure!(ended.stderr == "end" && ended.status == 5);

    // Read only after the end: what fits into the pipe is still there, and afterwards the end.
    pod.run(&shell("c2", "head -c 60000 /dev/zero; exit 6")).await?;
    ensure!(pod.wait("c2", "").await? == 6);
    let late = pod.finish("c2", "").await?;
    ensure!(late.stdout.len() == 60_000 && late.status == 6);
    pod.destroy().await
}

pub(crate) async fn output_ends_though_a_child_keeps_the_pipe() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "sleep 1000")).await?;
    let ended = pod.exec_script("c1", "e1", "sleep 999 & echo started").await?;
    ensure!(ended.stdout == "started\n" && ended.status == 0, "{ended:?}");
    pod.destroy().await
}

pub(crate) async fn exec_reads_its_input_to_the_end() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "sleep 1000")).await?;
    pod.exec("c1", "e1", process(&["/bin/sh", "-c", "wc -c; echo eof-seen >&2; exit 4"])).await?;
    let data = vec![b'y'; 1 << 20];
    for piece in data.chunks(8192) {
        ensure!(usize::try_from(pod.write("c1", "e1", piece).await?)? == piece.len());
    }
    pod.write("c1", "e1", b"").await?;
    let ended = pod.finish("c1", "e1").await?;
    ensure!(ended.stdout.trim() == "1048576" && ended.stderr == "eof-seen\n" && ended.status == 4, "{ended:?}");
    ensure!(pod.write("c1", "e1", b"late").await.is_err(), "the exec is gone");
    pod.destroy().await
}

pub(crate) async fn execs_report_codes_and_missing_programs() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "sleep 1000")).await?;
    for (exec_id, script, status) in [("e1", "exit 0", 0), ("e2", "exit 3", 3), ("e3", "kill -9 $$", 137), ("e4", "kill -15 $$", 143)] {
        ensure!(pod.exec_script("c1", exec_id, script).await?.status == status, "{script}");
        ensure!(code(pod.signal("c1", exec_id, 9).await)? == Code::NOT_FOUND, "{script}");
    }
    match pod.exec("c1", "e5", process(&["/no/such/binary"])).await {
        Err(ttrpc::Error::RpcStatus(status)) => {
            ensure!(status.code.enum_value_or_default() == Code::INTERNAL);
            let expected = "OCI runtime exec failed: exec failed: unable to start container process: \
                exec: \"/no/such/binary\": stat /no/such/binary: no such file or directory";
            ensure!(status.message == expected, "{}", status.message);
        }
        other => bail!("{other:?}"),
    }
    ensure!(code(pod.signal("c1", "e5", 9).await)? == Code::NOT_FOUND);
    ensure!(pod.exec_script("c1", "e5", "echo again").await?.stdout == "again\n", "the id can be used");
    pod.destroy().await
}

pub(crate) async fn waits_run_in_parallel() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "read a; exit 9")).await?;
    let waits = futures::future::try_join3(pod.wait("c1", ""), pod.wait("c1", "c1"), pod.wait("c1", ""));
    let (statuses, _) = futures::future::try_join(waits, async { Ok(pod.write("c1", "", b"\n").await?) }).await?;
    ensure!(statuses == (9, 9, 9));
    ensure!(pod.wait("c1", "").await? == 9, "it stays known until the container is removed");
    pod.destroy().await
}

fn with_terminal(mut process: oci::Process, rows: u32, columns: u32) -> oci::Process {
    process.Terminal = true;
    let mut size = oci::Box::new();
    size.Height = rows;
    size.Width = columns;
    process.ConsoleSize = Some(size).into();
    process
}

pub(crate) async fn terminal_has_the_size_it_was_given() -> Result<()> {
    let pod = Pod::start().await?;
    let mut request = shell("c1", "stty size; read a; stty size; ls -l /dev/console >/dev/null && echo console; exit 7");
    let spec = request.OCI.as_mut().context("spec")?;
    spec.Process = Some(with_terminal(spec.Process.take().context("process")?, 24, 80)).into();
    pod.run(&request).await?;
    pod.read_until("c1", "", "24 80\r\n").await?;
    resize(&pod, "c1", "", 40, 132).await?;
    pod.write("c1", "", b"\n").await?;
    let shown = pod.read_until("c1", "", "console\r\n").await?;
    ensure!(shown.contains("40 132\r\n"), "{shown:?}");
    ensure!(pod.finish("c1", "").await?.status == 7);

    pod.run(&shell("c2", "sleep 1000")).await?;
    let mut interactive = with_terminal(process(&["/bin/sh"]), 10, 20);
    interactive.Env.push("PS1=ready> ".to_owned());
    pod.exec("c2", "e1", interactive).await?;
    pod.write("c2", "e1", b"stty size; test -t 0 && echo ter''minal\n").await?;
    // With the prompt the shell has set the terminal up to read; what ends the input must not come before.
    let shown = pod.read_until("c2", "e1", "terminal\r\nready> ").await?;
    ensure!(shown.contains("10 20\r\n"), "{shown:?}");
    // The end of the input ends the shell.
    pod.write("c2", "e1", b"").await?;
    let ended = pod.finish("c2", "e1").await?;
    ensure!(ended.status == 0 && ended.stderr.is_empty(), "{ended:?}");
    pod.destroy().await
}

async fn resize(pod: &Pod, id: &str, exec_id: &str, rows: u32, columns: u32) -> Result<()> {
    let mut request = TtyWinResizeRequest::new();
    request.container_id = id.to_owned();
    request.exec_id = exec_id.to_owned();
    request.row = rows;
    request.column = columns;
    pod.rpc.tty_win_resize(rpc(), &request).await.context("TtyWinResize")?;
    Ok(())
}

pub(crate) async fn signals_reach_their_process() -> Result<()> {
    let pod = Pod::start().await?;
    let handled = "trap 'echo bye; exit 7' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done";
    pod.run(&shell("c1", handled)).await?;
    pod.read_until("c1", "", "ready\n").await?;
    pod.signal("c1", "", 10).await?;
    pod.read_until("c1", "", "usr1\n").await?;
    pod.signal("c1", "", 15).await?;
    let ended = pod.finish("c1", "").await?;
    ensure!(ended.stdout == "bye\n" && ended.status == 7, "{ended:?}");
    pod.signal("c1", "", 9).await.context("a kill of what has ended is fine")?;

    // No handler: as with kata-agent the signal is not lost.
    pod.run(&shell("c2", "echo ready; sleep 1000")).await?;
    pod.read_until("c2", "", "ready\n").await?;
    pod.signal("c2", "", 15).await?;
    ensure!(pod.finish("c2", "").await?.status == 137);

    pod.run(&shell("c3", "echo ready; sleep 1000")).await?;
    pod.read_until("c3", "", "ready\n").await?;
    pod.exec("c3", "e1", process(&["/bin/sleep", "1000"])).await?;
    pod.exec("c3", "e2", process(&["/bin/sleep", "1000"])).await?;
    pod.signal("c3", "e1", 9).await?;
    ensure!(pod.finish("c3", "e1").await?.status == 137);
    pod.signal("c3", "", 9).await?;
    ensure!(pod.finish("c3", "").await?.status == 137 && pod.finish("c3", "e2").await?.status == 137);

    pod.create(&shell("c4", "echo never")).await?;
    pod.signal("c4", "", 9).await.context("before its start")?;
    ensure!(pod.finish("c4", "").await?.status == 137);
    ensure!(code(pod.signal("unknown", "", 9).await)? == Code::NOT_FOUND);
    pod.destroy().await
}

pub(crate) async fn containers_share_what_the_pod_shares() -> Result<()> {
    let pod = Pod::start().await?;
    let show = "for n in ipc uts net pid mnt; do readlink /proc/self/ns/$n; done";
    let show_and_stay = format!("{show}; echo; sleep 1000");
    pod.run(&shell("c1", &show_and_stay)).await?;
    pod.run(&shell("c2", &show_and_stay)).await?;
    let own = pod.read_until("c1", "", "\n\n").await?;
    let other = pod.read_until("c2", "", "\n\n").await?;
    let (own, other): (Vec<_>, Vec<_>) = (own.trim().lines().collect(), other.trim().lines().collect());
    ensure!(own.len() == 5 && own[..3] == other[..3], "ipc, uts and net are the pod's: {own:?} {other:?}");
    ensure!(own[3] != other[3] && own[4] != other[4], "pid and mnt are the container's: {own:?} {other:?}");
    ensure!(own[0] != std::fs::read_link("/proc/self/ns/ipc")?.to_string_lossy(), "the VM's own are not shared");

    let mut shared = shell("c3", "ps; sleep 1000");
    shared.sandbox_pidns = true;
    pod.run(&shared).await?;
    let listed = pod.read_until("c3", "", "sleep 1000").await?;
    ensure!(listed.contains("/pause"), "the pause process is pid 1: {listed}");
    // A kill of the container must not take the pause process along.
    pod.signal("c3", "", 9).await?;
    ensure!(pod.finish("c3", "").await?.status == 137);
    ensure!(tokio::time::timeout(Duration::from_millis(50), pod.wait(SANDBOX, "")).await.is_err(), "the pause process runs");
    pod.destroy().await
}

pub(crate) async fn users_and_capabilities_are_as_asked() -> Result<()> {
    let pod = Pod::start().await?;
    let mut request = shell("c1", "id -u; id -g; id -G; cat /proc/self/oom_score_adj; stat -c %a /made; cat /proc/self/status; sleep 1000");
    {
        let spec = request.OCI.as_mut().context("spec")?;
        let process = spec.Process.as_mut().context("process")?;
        let mut user = oci::User::new();
        (user.UID, user.GID, user.AdditionalGids) = (1000, 1001, vec![2000]);
        process.User = Some(user).into();
        process.OOMScoreAdj = 900;
        process.Cwd = "/made/deep".to_owned();
        process.NoNewPrivileges = true;
        let mut limit = oci::POSIXRlimit::new();
        (limit.Type, limit.Soft, limit.Hard) = ("RLIMIT_NOFILE".to_owned(), 512, u64::MAX >> 1);
        process.Rlimits = vec![limit];
    }
    pod.run(&request).await?;
    let shown = pod.read_until("c1", "", "nonvoluntary_ctxt_switches").await?;
    ensure!(shown.starts_with("1000\n1001\n1001 2000\n900\n755\n"), "{shown}");
    ensure!(shown.contains("CapEff:\t0000000000000000") && shown.contains("NoNewPrivs:\t1"), "{shown}");
    // chown, dac_override, fowner, kill, setgid, setuid, net_raw, mknod; sys_resource only where the machine has it.
    let bounding = shown.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).context("CapBnd")?;
    let bounding = u64::from_str_radix(bounding, 16)? & !(1 << 24);
    ensure!(bounding == 0x0800_20eb, "{bounding:x}");

    // An exec that names none gets the container's, not all.
    let ended = pod.exec_script("c1", "e1", "cat /proc/self/status").await?;
    let effective = ended.stdout.lines().find_map(|line| line.strip_prefix("CapEff:\t")).context("CapEff")?;
    ensure!(u64::from_str_radix(effective, 16)? & !(1 << 24) == 0x0800_20eb, "{effective}");
    pod.destroy().await
}
