//! What a container writes, and where it can be read.

use anyhow::{Result, ensure};
use peerpods_e2e::{Container, Scenario, Story, scenarios, v1};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        stdout_and_stderr_reach_the_log_apart,
        a_long_line_is_logged_in_parts,
        binary_and_unicode_output_is_logged_as_it_was,
        output_without_a_last_newline_is_logged,
        much_output_at_once_is_logged_whole,
        a_reopened_log_goes_on_in_a_new_file,
        a_termination_message_reaches_the_node,
        output_after_the_first_process_ended_is_logged_too,
    ]
}

async fn stdout_and_stderr_reach_the_log_apart(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; echo; echo last";
    let container = pod.start(Container::script("c", script)).await?;
    container.ends().await?;
    ensure!(container.output("stdout")? == b"out 1\nout 2\nout 3\n\nlast\n");
    Ok(())
}

async fn a_long_line_is_logged_in_parts(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let script = "yes abcdefghijklmnop | tr -d '\\n' | head -c 1048576; echo; echo after";
    let container = pod.start(Container::script("c", script)).await?;
    container.ends().await?;
    ensure!(container.output("stdout")?.len() == 1_048_576 + 1 + 6);
    Ok(())
}

async fn binary_and_unicode_output_is_logged_as_it_was(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let script = "printf 'gr\\303\\274n \\342\\202\\254 \\360\\237\\246\\200\\n'; printf '\\000\\001\\377\\376\\r\\t\\033[0m\\n'";
    let container = pod.start(Container::script("c", script)).await?;
    container.ends().await?;
    ensure!(container.output("stdout")?.starts_with("grün € 🦀\n".as_bytes()));
    Ok(())
}

async fn output_without_a_last_newline_is_logged(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let container = pod.start(Container::script("c", "printf 'first\\nsecond'; printf warning >&2")).await?;
    container.ends().await?;
    Ok(())
}

async fn much_output_at_once_is_logged_whole(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let container = pod.start(Container::script("c", "seq 1 200000; exit 7")).await?;
    container.is_over().await?;
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    let whole = container.output("stdout")? == expected.as_bytes();
    story.record("all lines in order", whole);
    container.shows_exit().await?;
    Ok(())
}

async fn a_reopened_log_goes_on_in_a_new_file(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let container =
        pod.start(Container::script("c", "echo before; until [ -e /tmp/go ]; do usleep 20000; done; sleep 1; echo after")).await?;
    container.logs("before").await?;
    let rotated = container.log_path().with_extension("rotated");
    std::fs::rename(container.log_path(), &rotated)?;
    let request = v1::ReopenContainerLogRequest { container_id: container.id().to_owned() };
    story.cri().runtime.clone().reopen_container_log(request).await?;
    // The container outlives this exec by a second: its end would kill what still runs in it.
    container.prints("touch /tmp/go", "").await?;
    container.ends().await?;
    let old = std::fs::read_to_string(rotated)?;
    story.record("the old file", old.split_once(" stdout F ").map_or("", |(_, text)| text));
    Ok(())
}

async fn a_termination_message_reaches_the_node(story: Story) -> Result<()> {
    let pod = story.pod("message").run().await?;
    let container = pod.start(Container::script("c", "printf 'the disk is on fire' > /dev/termination-log; exit 3")).await?;
    container.ends().await?;
    // The kubelet reads the file once it has seen the container's end.
    story.record("termination log", String::from_utf8_lossy(&container.termination_log()?));
    ensure!(container.termination_log()? == b"the disk is on fire");
    Ok(())
}

async fn output_after_the_first_process_ended_is_logged_too(story: Story) -> Result<()> {
    let pod = story.pod("logs").run().await?;
    let script = "(trap '' HUP TERM; echo from a child) & echo from the parent; wait";
    let container = pod.start(Container::script("c", script)).await?;
    container.is_over().await?;
    let mut lines: Vec<String> = container.log()?.iter().map(|line| String::from_utf8_lossy(&line.content).into_owned()).collect();
    lines.sort();
    story.record("lines", lines.join(", "));
    Ok(())
}
