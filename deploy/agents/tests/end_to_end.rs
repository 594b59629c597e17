//! Episodes arrive: the real proxy stores and links every step, the real trainer judges them, and
//! the outcome of each episode is taken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use hone_agents::cli::{Options, run};
use hone_agents::environment::Environment;
use hone_agents::gui::Gui;
use hone_agents::summary::Summary;
use hone_agents::swe::Swe;
use hone_agents::terminal::Terminal;
use hone_agents::tools::Tools;
use support::{Front, Origin, hone, obedient, options};

async fn arrive(front: &Front, environment: &mut dyn Environment, flags: &[&str]) -> Summary {
    let asked = Options {
        data: Some(front.home.path().to_owned()),
        judge_seconds_max: 30,
        ..options(&front.url, flags)
    };
    let summary = run(&asked, environment).await.unwrap();
    eprintln!("{}", summary.lines());
    assert_eq!(summary.broken, 0, "{}\n{}", summary.lines(), front.logs());
    let recorded = summary.recorded.as_ref().expect("the admin API answers");
    assert_eq!(recorded.turns, summary.requests, "every request is stored");
    let episodes = summary.episodes.len();
    assert_eq!(recorded.linked, summary.requests - episodes, "and linked within its session");
    assert_eq!(recorded.sessions.len(), episodes);
    for (session, episode) in recorded.sessions.iter().zip(&summary.episodes) {
        assert_eq!(session.len(), episode.requests);
        assert!(session[0].link.is_none(), "an episode begins a session");
        let links = session[1..].iter().map(|turn| turn.link.as_deref());
        assert!(links.clone().all(|link| link == Some("exact")), "{:?}", links.collect::<Vec<_>>());
        let (last, steps) = session.split_last().unwrap();
        assert!(steps.iter().all(|turn| turn.verdict.is_some()), "every step is judged: {steps:?}");
        assert_eq!(last.verdict.is_some(), last.source.is_some());
        // Observations are recognised for what they are, tool messages or not.
        let kind = summary.environment.as_str();
        let kinds = steps.iter().filter_map(|turn| turn.kind.as_deref());
        assert!(
            kinds.clone().all(|found| found == kind),
            "{kind}: {:?}",
            kinds.collect::<Vec<_>>()
        );
    }
    let shown = summary.lines();
    assert_eq!(shown.matches(" taken; steps: ").count(), episodes, "outcomes by episode: {shown}");
    summary
}

/// The step that solved the task: what the environment said of it became a verdict.
fn last_step(summary: &Summary, episode: usize) -> (Option<i64>, Option<String>) {
    let session = &summary.recorded.as_ref().unwrap().sessions[episode];
    let step = &session[session.len() - 2];
    (step.verdict, step.source.clone())
}

#[tokio::test]
async fn episodes_of_every_environment_arrive_linked_and_judged() {
    let Some(hone) = hone() else { return };
    let origin = Origin::start(obedient).await;
    let front = Front::start(&hone, &origin.url);
    let oracle = ["--episodes", "2", "--policy", "oracle"];
    let chance = ["--episodes", "2", "--policy", "random", "--seed", "5"];
    let mut gui = match Gui::start(false, false).await {
        Ok(gui) => Some(gui),
        Err(error) => {
            assert!(std::env::var_os("HONE_CHROMIUM").is_none(), "{error}");
            eprintln!("SKIPPED: {error}; deploy/test.sh installs it");
            None
        }
    };
    let mut environments: Vec<&mut dyn Environment> = Vec::new();
    let (mut terminal, mut tools, mut swe) =
        (Terminal::new(false), Tools::new(false), Swe::new(false));
    environments.extend([&mut terminal as &mut dyn Environment, &mut tools, &mut swe]);
    environments.extend(gui.as_mut().map(|gui| gui as &mut dyn Environment));
    for environment in environments {
        let solved = arrive(&front, environment, &oracle).await;
        assert_eq!(solved.solved, 2, "{}", solved.lines());
        for episode in 0..2 {
            let (verdict, source) = last_step(&solved, episode);
            assert_eq!(verdict, Some(1), "{}: {source:?}", solved.lines());
        }
        let random = arrive(&front, environment, &chance).await;
        assert!(random.progress < random.steps, "chance makes mistakes: {}", random.lines());
    }
}
