//! How an image may come to a peer pod: every way, on both containerds, as the table in the README.
//!
//! Each way has an image of its own, so that none has layers that another one fetched. The table is made from what was seen; the test
//! fails when something is not as expected here, or when the README says something else. `WRITE_README=1` writes it there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_e2e::{Container, Handler, Image, Level, Naming, Rig, RigOptions, RunningPod, Story, Version, WorldOptions, eventually_async};

/// What is expected of a way, and what a reader should know of it.
enum Expected {
    /// The container runs, and the node has fetched no layer.
    Skips,
    /// The container runs, and the node has fetched layers.
    Fetches,
    /// It fails with this phrase; the second one says what to do.
    Fails(&'static str, &'static str),
}

use Expected::{Fails, Fetches, Skips};

const PATIENCE: Duration = Duration::from_secs(60);

/// A way, told as a table's row.
struct Row {
    name: &'static str,
    title: &'static str,
    expected: [Expected; 2],
}

const RUNC_LAST: &str = "pull it for runc too, as `imagePullPolicy: Always` does";
const START_DAEMON: &str = "start peerpods-node; the next try works";
const NO_BROKER: &str = "the guest has nobody to ask for keys; bring initdata that names a key broker";

fn rows() -> Vec<Row> {
    let row = |name, title, expected| Row { name, title, expected };
    vec![
        row("annotation", "pulled with the handler as the pod's annotation", [Skips, Skips]),
        row("field", "pulled with the handler as field of the CRI request alone", [Fetches, Fetches]),
        row("silent", "pulled without naming a handler", [Fetches, Fetches]),
        row("runc-first", "used by runc, then by a peer pod", [Fetches, Fetches]),
        row("ours-first", "used by a peer pod, then by runc, pulled for each", [Fetches, Fetches]),
        row(
            "ours-unpulled",
            "used by a peer pod, then by runc without a pull for it",
            [Fails("failed to get reader from content store", RUNC_LAST), Fails("failed to get reader from content store", RUNC_LAST)],
        ),
        row("at-once", "used by runc and by a peer pod at once", [Fetches, Fetches]),
        row("pruned", "used by a peer pod, `ctr content prune references`, used by another one", [Skips, Skips]),
        row("runc-pruned", "used by runc, `ctr content prune references`, used by a peer pod", [Fetches, Fetches]),
        row(
            "stopped-pull",
            "pulled while the node daemon is stopped",
            [
                Fails("snapshotter.sock: connect: connection refused", START_DAEMON),
                Fails("snapshotter.sock: connect: connection refused", START_DAEMON),
            ],
        ),
        row(
            "stopped-use",
            "pulled, then used while the node daemon is stopped",
            [
                Fails("snapshotter.sock: connect: connection refused", START_DAEMON),
                Fails("snapshotter.sock: connect: connection refused", START_DAEMON),
            ],
        ),
        row(
            "encrypted",
            "encrypted layers, initdata without a key broker",
            [Fails("key broker", NO_BROKER), Fails("key broker", NO_BROKER)],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_is_as_the_readme_says() {
    let mut table = String::from("| how the image came | containerd 1.7 | containerd 2.x |\n|---|---|---|\n");
    let mut seen: Vec<Vec<String>> = Vec::new();
    let mut wrong = Vec::new();
    for (column, version) in Version::ALL.into_iter().enumerate() {
        let rig = Arc::new(Rig::start(&RigOptions::new(version, WorldOptions::new(Level::Sandbox))).unwrap());
        let mut cells = Vec::new();
        for row in rows() {
            let way = Way::new(&rig, row.name).unwrap();
            let outcome = way.go().await;
            println!(
                "{} {}: {:?}, layers fetched: {}",
                version.name(),
                row.name,
                outcome.as_ref().err().map(|e| format!("{e:#}")),
                way.fetched()
            );
            cells.push(judge(&row.expected[column], &outcome, way.fetched()).unwrap_or_else(|error| {
                wrong.push(format!("{} {}: {error:#}", version.name(), row.name));
                String::new()
            }));
        }
        seen.push(cells);
        if !wrong.is_empty() {
            println!("{}", rig.logs());
        }
        rig.world().wait_for_no_machines(Duration::from_secs(30)).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (index, row) in rows().iter().enumerate() {
        table += &format!("| {} | {} | {} |\n", row.title, seen[0][index], seen[1][index]);
    }
    check_readme(&table).unwrap();
}

fn judge(expected: &Expected, outcome: &Result<()>, fetched: usize) -> Result<String> {
    match (expected, outcome) {
        (Skips, Ok(())) => {
            ensure!(fetched == 0, "the node fetched {fetched} layers");
            Ok("runs; no layer on the node".to_owned())
        }
        (Fetches, Ok(())) => {
            ensure!(fetched > 0, "the node fetched no layer, which is better than expected");
            Ok("runs; the node fetched the layers too".to_owned())
        }
        (Fails(phrase, next), Err(error)) => {
            let text = format!("{error:#}");
            ensure!(text.contains(phrase), "it failed with {text:?} instead of {phrase:?}");
            Ok(format!("fails with `… {phrase} …`: {next}"))
        }
        (Fails(..), Ok(())) => bail!("it works, which is better than expected"),
        (_, Err(error)) => bail!("it failed: {error:#}"),
    }
}

/// One way with its image.
struct Way<'a> {
    rig: &'a Arc<Rig>,
    name: &'static str,
    image: Image,
    /// So that each has a log of its own.
    containers: AtomicUsize,
}

impl<'a> Way<'a> {
    fn new(rig: &'a Arc<Rig>, name: &'static str) -> Result<Self> {
        let mut image = Image::busybox(&[("name", name.as_bytes())])?;
        // The base is shared with every other image; what counts is the layer that is this image's own.
        if name == "encrypted" {
            image = image.encrypted(&[7; 32], "kbs:///default/key/1")?;
        }
        rig.world().registry().push(rig.world().netns(), name, "1", &image)?;
        Ok(Self { rig, name, image, containers: AtomicUsize::new(0) })
    }

    /// Own layers that containerd fetched.
    fn fetched(&self) -> usize {
        let own = self.image.layers.last().map(|layer| layer.digest()).unwrap_or_default();
        self.rig.gate().fetched().iter().filter(|path| path.ends_with(&own)).count()
    }

    async fn go(&self) -> Result<()> {
        let (ours, runc) = (Handler::PeerPods, Handler::Runc);
        match self.name {
            "annotation" => self.run(ours, Naming::Annotation).await,
            "field" => self.run(ours, Naming::Field).await,
            "silent" => self.run(ours, Naming::Silent).await,
            "runc-first" => {
                self.run(runc, Naming::Both).await?;
                self.run(ours, Naming::Both).await
            }
            "ours-first" => {
                self.run(ours, Naming::Both).await?;
                self.run(runc, Naming::Both).await
            }
            "ours-unpulled" => {
                self.run(ours, Naming::Both).await?;
                ensure!(self.fetched() == 0);
                let outcome = self.run(runc, Naming::NoPull).await;
                self.run(runc, Naming::Both).await.context("the way out")?;
                outcome
            }
            "at-once" => {
                let (one, other) = tokio::join!(self.run(ours, Naming::Both), self.run(runc, Naming::Both));
                one.and(other)
            }
            "pruned" => {
                self.run(ours, Naming::Both).await?;
                self.prune()?;
                self.run(ours, Naming::NoPull).await
            }
            "runc-pruned" => {
                self.run(runc, Naming::Both).await?;
                self.prune()?;
                self.run(ours, Naming::Both).await
            }
            "stopped-pull" => {
                self.rig.world().kill_node()?;
                let outcome = self.pull(Naming::Both).await;
                self.rig.world().start_node()?;
                ensure!(outcome.is_err());
                // containerd waits for a moment before it dials again, and so does a kubelet.
                eventually_async("it is pulled after the daemon has come back", PATIENCE, || self.pull(Naming::Both)).await?;
                self.run(ours, Naming::NoPull).await?;
                outcome
            }
            "stopped-use" => {
                self.pull(Naming::Both).await?;
                let story = self.story(ours, Naming::NoPull).await?;
                let pod = story.pod(self.name).run().await?;
                self.rig.world().kill_node()?;
                let outcome = self.start(&pod).await;
                self.rig.world().start_node()?;
                let after = eventually_async("it is used after the daemon has come back", PATIENCE, || self.start(&pod)).await;
                story.clean_up().await?;
                after?;
                outcome
            }
            "encrypted" => {
                let outcome = self.run(ours, Naming::Both).await;
                ensure!(self.fetched() == 0, "the node fetched encrypted layers");
                outcome
            }
            other => bail!("there is no way {other}"),
        }
    }

    async fn story(&self, handler: Handler, naming: Naming) -> Result<Story> {
        Story::begin_with(Arc::clone(self.rig), handler, self.name, naming).await
    }

    /// A pod with one container that reads the image's own file.
    async fn run(&self, handler: Handler, naming: Naming) -> Result<()> {
        let story = self.story(handler, naming).await?;
        let pod = story.pod(self.name).run().await.context("the sandbox")?;
        let outcome = self.start(&pod).await;
        story.clean_up().await?;
        outcome
    }

    async fn start(&self, pod: &RunningPod) -> Result<()> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let command = Container::script("x", "cat /name").config.command;
        let container = Container::of_image(&format!("c{number}"), self.name).with(|config| config.command = command);
        let container = pod.start(container).await?;
        let status = container.is_over().await?;
        ensure!(status.exit_code == 0, "it ended with {}", status.exit_code);
        let output = container.output("stdout")?;
        ensure!(output == self.name.as_bytes(), "it says {:?}", String::from_utf8_lossy(&output));
        Ok(())
    }

    async fn pull(&self, naming: Naming) -> Result<()> {
        self.story(Handler::PeerPods, naming).await?.pull_alone(self.name).await
    }

    fn prune(&self) -> Result<()> {
        let output = self.rig.ctr()?.args(["content", "prune", "references"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

const BEGIN: &str = "<!-- snapshotter: written by the test tests/e2e/tests/snapshotter.rs -->\n";
const END: &str = "<!-- end of snapshotter -->";

fn check_readme(table: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).context("the README has no place for the table")?;
    let (found, after) = rest.split_once(END).context("the README's place for the table has no end")?;
    if found == table {
        return Ok(());
    }
    if std::env::var_os("WRITE_README").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}"))?;
        return Ok(());
    }
    bail!("the README's table is another one; WRITE_README=1 writes this one:\n{table}")
}
