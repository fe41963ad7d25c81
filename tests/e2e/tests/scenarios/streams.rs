//! What goes through the stream server: exec, attach, port-forward; and ExecSync.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Container, Running, Scenario, Story, eventually_async, scenarios};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        exec_tells_output_and_exit_code,
        exec_is_ended_after_its_time,
        exec_carries_much_output,
        exec_with_standard_input_echoes_it,
        exec_after_the_containers_end_is_refused,
        a_terminal_of_exec_has_the_size_it_is_given,
        cp_into_and_out_of_a_container,
        attach_sees_and_feeds_the_first_process,
        a_containers_terminal_is_attached_to,
        standard_input_of_one_attach_ends_with_it,
        port_forward_reaches_a_port_of_the_pod,
        port_forward_to_a_closed_port_fails.differs(
            "error",
            "reset",
            "the node takes the dial before it can ask the pod VM, so it can no longer be refused, only reset"
        ),
        port_forward_never_reaches_the_workload_api.differs(
            "answer",
            "nothing",
            "port 8006 is where the pod VM gives the workload its secrets, which nobody on the node may have"
        ),
    ]
}

async fn waiting(story: &Story) -> Result<Running> {
    story.pod("streams").run().await?.start(Container::waiting("c")).await
}

async fn exec_tells_output_and_exit_code(story: Story) -> Result<()> {
    let container = waiting(&story).await?;
    container.says("echo out; echo err >&2; exit 3").await?;
    container.says("printf '\\377\\000x'; printf no-newline >&2").await?;
    container.says("kill -9 $$").await?;
    container.says("cat; echo no input").await?;
    container.execs(&["/bin/true"]).await?;
    container.says("env | sort").await?;
    let outcome = container.stream(&["/bin/sh", "-c", "echo out; echo err >&2; exit 5"], "").await?.finish().await?;
    story.record("stream", format!("{outcome:?}"));
    let outcome = container.stream(&["nosuch"], "").await?.finish().await?;
    story.record(
        "stream of a missing command",
        format!("{:?} {}", outcome.code, outcome.message.contains("executable file not found in $PATH")),
    );
    Ok(())
}

async fn exec_is_ended_after_its_time(story: Story) -> Result<()> {
    let container = waiting(&story).await?;
    let begin = SystemTime::now();
    container.refuses(&["/bin/sh", "-c", "echo begun; sleep 1234"], 1, &["timeout"]).await;
    ensure!(begin.elapsed()? < Duration::from_secs(20));
    let gone = eventually_async("the process is gone", Duration::from_secs(20), || async {
        let answer = container.exec(&["/bin/sh", "-c", "ps -o args | grep -c '[s]leep 1234'"], 10).await?;
        ensure!(answer.stdout == b"0\n", "{answer:?}");
        Ok(())
    });
    story.record("nothing of it is left", gone.await.is_ok());
    Ok(())
}

async fn exec_carries_much_output(story: Story) -> Result<()> {
    let container = waiting(&story).await?;
    let answer = container.exec(&["/bin/sh", "-c", "seq 1 300000; seq 1 1000 >&2"], 60).await?;
    let expected: String = (1..=300_000).map(|i| format!("{i}\n")).collect();
    story.record("sync", format!("{} {} {}", answer.stdout == expected.as_bytes(), answer.stderr.len(), answer.exit_code));
    let outcome = container.stream(&["seq", "1", "300000"], "").await?.finish().await?;
    story.record("stream", format!("{} {:?}", outcome.stdout == expected.as_bytes(), outcome.code));
    Ok(())
}

async fn exec_with_standard_input_echoes_it(story: Story) -> Result<()> {
    let container = waiting(&story).await?;
    let mut session = container.stream(&["cat"], "i").await?;
    session.write(b"hello\n").await?;
    session.read_until("hello\n").await?;
    session.write("grün\n".as_bytes()).await?;
    session.read_until("grün\n").await?;
    session.close_stdin().await?;
    story.record("cat", format!("{:?}", session.finish().await?));
    let session = container.stream(&["/bin/sh", "-c", "wc -c; exit 4"], "i").await?;
    let input = vec![b'x'; 3 << 20];
    session.write(&input).await?;
    session.close_stdin().await?;
    let outcome = session.finish().await?;
    story.record("wc", format!("{} {:?}", String::from_utf8_lossy(&outcome.stdout).trim(), outcome.code));
    ensure!(outcome.stdout == b"3145728\n");
    // It ends although nobody closed its input.
    let session = container.stream(&["/bin/sh", "-c", "read line; echo \"got $line\""], "i").await?;
    session.write(b"one\ntwo\n").await?;
    story.record("read", format!("{:?}", session.finish().await?));
    Ok(())
}

async fn exec_after_the_containers_end_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("streams").run().await?;
    let container = pod.start(Container::script("c", "exit 0")).await?;
    container.is_over().await?;
    container.refuses(&["true"], 10, &["CONTAINER_EXITED"]).await;
    match container.attach("").await {
        Ok(_) => story.record("attach", "opened"),
        Err(error) => story.record("attach", format!("{}", format!("{error:#}").contains("CONTAINER_EXITED"))),
    }
    Ok(())
}

async fn a_terminal_of_exec_has_the_size_it_is_given(story: Story) -> Result<()> {
    let container = waiting(&story).await?;
    let mut session = container.stream(&["/bin/sh"], "it").await?;
    session.resize(91, 33).await?;
    session.write(b"stty -echo; PS1=; echo re\"\"ady\n").await?;
    session.read_until("ready\r\n").await?;
    let mut sized = Vec::new();
    for (columns, rows) in [(91, 33), (40, 10)] {
        session.resize(columns, rows).await?;
        let size = format!("{rows} {columns}\r\n");
        // The size travels beside the bytes, so it may arrive a moment later.
        session.write(format!("until [ \"$(stty size)\" = '{rows} {columns}' ]; do usleep 20000; done; stty size\n").as_bytes()).await?;
        sized.push(session.read_until(&size).await?.ends_with(&size));
    }
    story.record("sizes", format!("{sized:?}"));
    session.write(b"tty; test -t 0 && test -t 1 && test -t 2 && echo all te\"\"rminals; echo $TERM\n").await?;
    story.record("terminal", session.read_until("all terminals\r\n").await?);
    session.write(b"sleep 1000\n").await?;
    // Ctrl-C reaches the foreground process; the shell goes on.
    eventually_async("sleep runs", Duration::from_secs(20), || async {
        let answer = container.exec(&["/bin/sh", "-c", "ps -o args | grep -c '^sleep 1000'"], 10).await?;
        ensure!(answer.stdout == b"2\n", "{answer:?}");
        Ok(())
    })
    .await?;
    session.write(b"\x03").await?;
    session.write(b"echo still he\"\"re\n").await?;
    session.read_until("still here\r\n").await?;
    session.write(b"exit 6\n").await?;
    let outcome = session.finish().await?;
    story.record("exit", format!("{:?} {:?}", outcome.code, outcome.message));
    Ok(())
}

async fn cp_into_and_out_of_a_container(story: Story) -> Result<()> {
    let container = waiting(&story).await?;
    let mut content = Vec::new();
    for i in 0..1_500_000_u32 {
        content.extend(i.wrapping_mul(2_654_435_761).to_le_bytes());
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o640);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, "big.bin", content.as_slice())?;
    // As `kubectl cp` does it: tar on both ends.
    let session = container.stream(&["tar", "-xmf", "-", "-C", "/tmp"], "i").await?;
    session.write(&tar.into_inner()?).await?;
    session.close_stdin().await?;
    story.record("in", format!("{:?}", session.finish().await?));
    container.says("wc -c < /tmp/big.bin; sha256sum < /tmp/big.bin; stat -c '%a %u' /tmp/big.bin").await?;
    let outcome = container.stream(&["tar", "cf", "-", "/tmp/big.bin"], "").await?.finish().await?;
    let mut archive = tar::Archive::new(outcome.stdout.as_slice());
    let mut entry = archive.entries()?.next().context("an entry")??;
    let mut back = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut back)?;
    story.record("out", format!("{} {:?}", back == content, outcome.code));
    ensure!(back == content);
    Ok(())
}

async fn attach_sees_and_feeds_the_first_process(story: Story) -> Result<()> {
    let pod = story.pod("attach").run().await?;
    // The seconds of sleep pass by two races of containerd's attach, which runc loses too: input is fed before the outputs
    // are joined, and the first output that ends takes what is still on its way on the other with it.
    let script = "echo early; while read line; do sleep 1; echo \"heard $line\"; echo \"err $line\" >&2; [ \"$line\" = end ] && break; done; sleep 1; exit 3";
    let container = pod.start(Container::script("c", script).stdin(false)).await?;
    container.logs("early").await?;
    let mut session = container.attach("i").await?;
    session.write(b"one\n").await?;
    session.read_until("heard one\n").await?;
    drop(session);
    // A standard input that is not of one attach alone stays open.
    let mut again = container.attach("i").await?;
    again.write(b"two\n").await?;
    again.read_until("heard two\n").await?;
    again.write(b"end\n").await?;
    let outcome = again.finish().await?;
    story.record("attach", format!("{:?}", String::from_utf8_lossy(&outcome.stdout)));
    container.ends().await?;
    Ok(())
}

async fn a_containers_terminal_is_attached_to(story: Story) -> Result<()> {
    let pod = story.pod("attach").run().await?;
    let container = pod
        .start(Container::script("c", "stty -echo; echo ready; read line; echo \"heard $line\"; tty; exit 2").stdin(false).tty())
        .await?;
    container.logs("ready").await?;
    let mut session = container.attach("it").await?;
    session.resize(77, 22).await?;
    eventually_async("the size arrives", Duration::from_secs(20), || async {
        let answer = container.exec(&["/bin/sh", "-c", "stty size < /dev/console"], 10).await?;
        ensure!(answer.stdout == b"22 77\n", "{answer:?}");
        Ok(())
    })
    .await?;
    session.write(b"line\n").await?;
    session.read_until("heard line\r\n").await?;
    let _ = session.finish().await;
    container.ends().await?;
    Ok(())
}

async fn standard_input_of_one_attach_ends_with_it(story: Story) -> Result<()> {
    let pod = story.pod("once").run().await?;
    let container =
        pod.start(Container::script("c", "read line; sleep 1; echo \"$line\"; cat; echo eof; sleep 1; exit 4").stdin(true)).await?;
    let mut session = container.attach("i").await?;
    session.write(b"some input\n").await?;
    session.read_until("some input\n").await?;
    session.close_stdin().await?;
    let outcome = session.finish().await?;
    story.record("attach", format!("{:?}", String::from_utf8_lossy(&outcome.stdout)));
    container.ends().await?;
    Ok(())
}

const WEB: &str = "mkdir -p /www; echo forwarded > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www";

async fn port_forward_reaches_a_port_of_the_pod(story: Story) -> Result<()> {
    let pod = story.pod("forward").run().await?;
    let web = pod.start(Container::script("web", WEB)).await?;
    eventually_async("the server listens", Duration::from_secs(20), || async {
        let answer = web.exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"], 10).await?;
        ensure!(answer.exit_code == 0, "{answer:?}");
        Ok(())
    })
    .await?;
    let stream = story.cri().port_forward(pod.id(), 8080).await?;
    stream.write(b"GET / HTTP/1.0\r\n\r\n").await?;
    let (data, error) = stream.finish().await?;
    story.record("answer", format!("{:?} {error:?}", String::from_utf8_lossy(&data).lines().last()));
    ensure!(data.ends_with(b"forwarded\n"));
    // Bytes of both directions, many of them, and a half-closed connection.
    let echo = pod.start(Container::new("echo", &["nc", "-l", "-p", "9000", "-e", "/bin/cat"])).await?;
    eventually_async("the echo listens", Duration::from_secs(20), || async {
        let answer = echo.exec(&["/bin/sh", "-c", "grep -c ':2328 ' /proc/net/tcp /proc/net/tcp6 | grep -vc ':0$'"], 10).await?;
        ensure!(answer.exit_code == 0, "{answer:?}");
        Ok(())
    })
    .await?;
    let mut stream = story.cri().port_forward(pod.id(), 9000).await?;
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(|i| i.to_le_bytes()).collect();
    let mut received = Vec::new();
    for piece in sent.chunks(100_000) {
        stream.write(piece).await?;
        while received.len() + 65_536 < piece.len() {
            received.extend(stream.read().await.context("the echo ended")?);
        }
    }
    stream.close().await?;
    let (rest, error) = stream.finish().await?;
    received.extend(rest);
    story.record("echo", format!("{} {error:?}", received == sent));
    Ok(())
}

async fn port_forward_to_a_closed_port_fails(story: Story) -> Result<()> {
    let pod = story.pod("forward").run().await?;
    pod.start(Container::waiting("c")).await?;
    let stream = story.cri().port_forward(pod.id(), 8081).await?;
    let (data, error) = stream.finish().await?;
    story.record("data", format!("{:?}", String::from_utf8_lossy(&data)));
    // containerd has words for a dial that is reset; a connection that is reset after it, it answers by resetting the stream.
    let words = ["connection refused", "reset"];
    story.record("error", words.into_iter().find(|words| error.contains(words)).unwrap_or(&error));
    Ok(())
}

/// Something of the workload listens where the pod VM's own service would.
async fn port_forward_never_reaches_the_workload_api(story: Story) -> Result<()> {
    let pod = story.pod("forward").run().await?;
    // In a pod VM the port is taken: the guest itself answers there, and to this question that it knows no such thing.
    let script = "mkdir -p /www; echo secret > /www/index.html; httpd -p 8006 -h /www; while :; do sleep 1000 & wait $!; done";
    let web = pod.start(Container::script("web", script)).await?;
    eventually_async("somebody listens", Duration::from_secs(20), || async {
        let ask = "wget -q -O - http://127.0.0.1:8006/ 2>&1 | grep -q -e secret -e 404";
        let answer = web.exec(&["/bin/sh", "-c", ask], 10).await?;
        ensure!(answer.exit_code == 0, "{answer:?}");
        Ok(())
    })
    .await?;
    let stream = story.cri().port_forward(pod.id(), 8006).await?;
    // The connection may be gone before the question is sent.
    let _ = stream.write(b"GET / HTTP/1.0\r\n\r\n").await;
    let (data, _) = stream.finish().await?;
    story.record("answer", if data.is_empty() { "nothing" } else { "something" });
    Ok(())
}
