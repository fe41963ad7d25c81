//! Registries and networks that are slow to serve, break off, or stand behind a proxy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use common::registry::Body;
use common::{Image, Layer, Registry, chain, limits, policy, pull, settled, store, store_with};
use peerpods_image::{Limits, PullError, PullPolicy, Registries};

fn large() -> Image {
    // Does not compress, so that the stream is long enough to break in many places.
    let mut state = 1_u32;
    let content: Vec<u8> = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect();
    Image::of([Layer::new().file("f", &content).gzip()])
}

/// Pushes `image` with this answer for its layer.
fn push(registry: &Registry, image: &Image, body: Body) -> String {
    registry.push("app", "1", image);
    registry.set_blob("app", &image.layers[0].bytes, body);
    format!("{}/app:1", registry.host())
}

#[tokio::test]
async fn broken_download_goes_on_where_it_broke() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = large();
    let bytes = &image.layers[0].bytes;
    let name = push(&registry, &image, Body::Breaking(bytes.clone(), 50_000));
    store(folder.path()).pull(&name, &policy(&registry), None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let ranges: Vec<u64> = registry.requests().iter().filter_map(|request| request.range).collect();
    assert!(ranges.len() >= 5 && ranges.is_sorted() && ranges[0] > 0, "{ranges:?}");
}

#[tokio::test]
async fn registry_without_ranges_sends_all_again() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = large();
    let name = push(&registry, &image, Body::Odd(image.layers[0].bytes.clone(), 70_000, None));
    store(folder.path()).pull(&name, &policy(&registry), None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(registry.fetches(&image.layers[0].bytes), 2);
}

#[tokio::test]
async fn other_bytes_than_the_missing_ones_are_refused() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = large();
    for range in ["bytes 0-9/300000", "bytes 1-2", "", "pages 7-8/9"] {
        let name = push(&registry, &image, Body::Odd(image.layers[0].bytes.clone(), 70_000, Some(range)));
        let error = store(folder.path()).pull(&name, &policy(&registry), None).await.unwrap_err();
        assert!(matches!(error, PullError::Unusable { .. }) && chain(&error).contains("were asked for"), "{}", chain(&error));
        settled(folder.path()).await;
    }
}

#[tokio::test]
async fn download_that_makes_no_progress_or_breaks_for_ever_is_given_up() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = large();
    let bytes = &image.layers[0].bytes;
    let name = push(&registry, &image, Body::Turns(vec![Body::Breaking(bytes.clone(), 50_000), Body::Breaking(bytes.clone(), 0)]));
    let error = store(folder.path()).pull(&name, &policy(&registry), None).await.unwrap_err();
    assert!(matches!(error, PullError::Truncated { .. }), "{}", chain(&error));
    let retries = usize::try_from(limits().retries).unwrap();
    assert_eq!(registry.fetches(bytes), 1 + retries, "the first, and as many as are allowed after it came to something");

    let other = tempfile::tempdir().unwrap();
    let name = push(&registry, &image, Body::Breaking(bytes.clone(), 1000));
    let store = store_with(other.path(), Limits { resumes: 3, ..limits() });
    assert!(matches!(store.pull(&name, &policy(&registry), None).await, Err(PullError::Truncated { .. })));
    assert_eq!(registry.fetches(bytes), 1 + retries + 4);
    settled(folder.path()).await;
}

#[tokio::test]
async fn busy_registry_is_waited_for() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = Image::of([Layer::new().file("f", b"x").gzip()]);
    registry.push("app", "1", &image);
    let busy = |status, headers| Body::Refusal(status, headers);
    let date = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(5));
    registry.set(
        "/v2/app/manifests/1",
        Body::Turns(vec![
            busy("429 Too Many Requests", vec![("Retry-After", "1".to_owned())]),
            busy("503 Service Unavailable", vec![("Retry-After", date)]),
            busy("502 Bad Gateway", Vec::new()),
            Body::Bytes(image.manifest()),
        ]),
    );
    let begin = Instant::now();
    store(folder.path()).pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(registry.requests().iter().filter(|request| request.path.ends_with("manifests/1")).count(), 4);
}

#[tokio::test]
async fn busy_for_too_long_is_told_with_the_registrys_words_and_a_mirror_is_tried() {
    let (folder, busy, registry) = (tempfile::tempdir().unwrap(), Registry::start(), Registry::start());
    let image = Image::of([Layer::new().file("f", b"x").gzip()]);
    registry.push("app", "1", &image);
    busy.set("/v2/app/manifests/1", Body::Refusal("429 Too Many Requests", vec![("Retry-After", "3600".to_owned())]));
    let store = store(folder.path());
    let error = store.pull(&format!("{}/app:1", busy.host()), &policy(&busy), None).await.unwrap_err();
    assert!(matches!(error, PullError::RateLimited { wait: Some(wait), .. } if wait.as_secs() == 3600), "{}", chain(&error));
    assert!(error.to_string().contains("asks to wait 3600 s") && error.to_string().contains(&busy.host()), "{error}");
    assert_eq!(busy.requests().len(), 1, "an hour is not waited for");

    let config = format!(
        "[[registry]]\nprefix = \"r.example\"\nlocation = \"{}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        registry.host(),
        busy.host()
    );
    let mirrored = PullPolicy { registries: Registries::parse(&config).unwrap(), ..PullPolicy::default() };
    store.pull("r.example/app:1", &mirrored, None).await.unwrap();
}

#[tokio::test]
async fn requests_that_can_never_succeed_are_not_repeated() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    for status in ["400 Bad Request", "403 Forbidden", "404 Not Found", "501 Not Implemented"] {
        let before = registry.requests().len();
        registry.set("/v2/app/manifests/1", Body::Refusal(status, Vec::new()));
        store.pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap_err();
        assert_eq!(registry.requests().len() - before, 1, "{status}");
    }
}

#[tokio::test]
async fn token_service_that_is_busy_is_waited_for() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = Image::of([Layer::new().file("f", b"x").gzip()]);
    registry.push("app", "1", &image);
    let challenge = format!("Bearer realm=\"http://{}/token\"", registry.host());
    registry.set("/v2/app/manifests/1", Body::Guarded { authorization: "Bearer abc".to_owned(), challenge, bytes: image.manifest() });
    let token = Body::Bytes(br#"{"token": "abc"}"#.to_vec());
    registry.set("/token", Body::Turns(vec![Body::Refusal("429 Too Many Requests", Vec::new()), token]));
    store(folder.path()).pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap();
}

/// An HTTP proxy for CONNECT and for plain requests, with what it was asked.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let shared = asked.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let asked = shared.clone();
            std::thread::spawn(move || serve_proxy(client, &asked));
        }
    });
    (address, asked)
}

fn serve_proxy(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        asked.lock().unwrap().push(head.clone());
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        if method == "CONNECT" {
            let mut server = TcpStream::connect(target).ok()?;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            let (mut from, mut to) = (server.try_clone().ok()?, client.try_clone().ok()?);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::io::copy(&mut reader, &mut server).ok()?;
            return server.shutdown(std::net::Shutdown::Both).ok();
        }
        let rest = target.strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/')?);
        let mut server = TcpStream::connect(host).ok()?;
        let others: String = head.lines().skip(1).filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
        server.write_all(format!("GET {path} HTTP/1.1\r\n{others}\r\n").as_bytes()).ok()?;
        // It has no other request, so the answer's end is the connection's.
        server.shutdown(std::net::Shutdown::Write).ok()?;
        std::io::copy(&mut server, &mut client).ok()?;
    }
}

fn proxied(text: &str, registry: &Registry, more: &str) -> PullPolicy {
    let text =
        format!("[image.image_pull_proxy]\n{text}\n[[image.registry_config.registry]]\nlocation = \"{}\"\n{more}\n", registry.host());
    PullPolicy::from_cdh_toml(&text).unwrap()
}

#[tokio::test]
async fn registries_are_reached_through_their_proxies() {
    let (folder, (registry, certificate)) = (tempfile::tempdir().unwrap(), Registry::start_tls());
    let image = Image::of([Layer::new().file("f", b"x").gzip()]);
    registry.push("app", "1", &image);
    let (address, asked) = proxy();
    let name = format!("{}/app:1", registry.host());
    let policy = PullPolicy {
        extra_root_certificates: vec![certificate],
        ..proxied(&format!("https_proxy = \"http://me:hunter2@{address}\""), &registry, "")
    };
    store(folder.path()).pull(&name, &policy, None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let heads = asked.lock().unwrap().clone();
    assert!(!heads.is_empty() && heads.iter().all(|head| head.starts_with(&format!("CONNECT {} ", registry.host()))), "{heads:?}");
    assert!(heads[0].to_lowercase().contains("proxy-authorization: basic bwu6ahvudgvymg=="), "{heads:?}");

    // The other kind of registry has the other proxy, and whoever is named has none.
    let (plain, folder) = (Registry::start(), tempfile::tempdir().unwrap());
    plain.push("app", "1", &image);
    let name = format!("{}/app:1", plain.host());
    let before = asked.lock().unwrap().len();
    for (text, is_proxied) in [
        (format!("https_proxy = \"http://{address}\""), false),
        (format!("http_proxy = \"http://{address}\"\nno_proxy = \"127.0.0.0/8\""), false),
        (format!("http_proxy = \"http://{address}\"\nno_proxy = \"elsewhere.example\""), true),
    ] {
        store(folder.path())
            .pull(&name, &proxied(&text, &plain, "insecure = true"), None)
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(asked.lock().unwrap().len() > before, is_proxied, "{text}");
    }
}

#[tokio::test]
async fn dead_proxy_is_told_without_its_password() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let dead = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let policy = proxied(&format!("http_proxy = \"http://me:hunter2@{dead}\""), &registry, "insecure = true");
    let error = store(folder.path()).pull(&format!("{}/app:1", registry.host()), &policy, None).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{}", chain(&error));
    let shown = format!("{} {error:?} {policy:?}", chain(&error));
    assert!(!shown.contains("hunter2") && !shown.contains("bWU6aHVudGVyMg"), "{shown}");
}

#[tokio::test]
async fn zstd_layers_are_unpacked_in_all_their_forms() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let tar = |content: &[u8]| Layer::new().file("f", content).tar();
    let text: Vec<u8> = (0..200_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    let whole = tar(&text);
    let (first, second) = whole.split_at(100_000);
    // A skippable frame (magic 0x184d2a50) before, between and behind, and an empty frame.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
    let encode = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let frames = [skippable.clone(), encode(first), encode(b""), skippable.clone(), encode(second), skippable].concat();
    let mut odd = common::image::zstd_of(&whole, 1);
    odd.bytes = frames;
    for (index, blob) in [common::image::zstd_of(&whole, 1), common::image::zstd_of(&whole, 19), odd].into_iter().enumerate() {
        let image = Image::of([Layer::new().file("other", &[u8::try_from(index).unwrap()]).gzip(), blob]);
        pull(&store, &registry, &image).await.unwrap_or_else(|error| panic!("{index}: {}", chain(&error)));
    }
}

#[tokio::test]
async fn bad_zstd_is_refused_by_what_is_wrong() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let tar = Layer::new().file("f", &[7; 100_000]).tar();
    let good = common::image::zstd_of(&tar, 3);
    // Frames that end early, that are none, and one that wants to look back 64 MiB.
    let cut = good.bytes[..good.bytes.len() - 5].to_vec();
    let none = b"no frame at all".to_vec();
    let mut wide = zstd::Encoder::new(Vec::new(), 3).unwrap();
    wide.window_log(26).unwrap();
    wide.include_contentsize(false).unwrap();
    wide.write_all(&tar).unwrap();
    let wide = wide.finish().unwrap();
    for (bytes, expected) in [(cut, "damaged"), (none, "damaged"), (wide, "8388608 bytes of zstd window")] {
        let store = store(folder.path());
        let image = Image::of([common::image::Blob { bytes, ..good.clone() }]);
        let error = pull(&store, &registry, &image).await.unwrap_err();
        assert!(matches!(error, PullError::Layer { .. }) && chain(&error).contains(expected), "{}", chain(&error));
        settled(folder.path()).await;
    }
}

#[tokio::test]
async fn zstd_bombs_stop_at_the_ratio() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store_with(folder.path(), Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..limits() });
    let image = Image::of([common::image::zstd_of(&Layer::new().file("f", &vec![0; 16 << 20]).tar(), 19)]);
    let error = pull(&store, &registry, &image).await.unwrap_err();
    assert!(chain(&error).contains("times the compressed size"), "{}", chain(&error));
}
