//! Manifests as users write them.

use stillmesh_k8s::Severity;
use stillmesh_k8s::parse;

/// Any text, as YAML and as JSON: findings are inside the text, and an object that was read, written and read again is
/// the same and without fault.
pub(crate) fn documents(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let found = parse::documents("fuzz.yaml", &text);
    // YAML counts a carriage return of its own as the end of a line too.
    let lines = text.chars().filter(|letter| matches!(letter, '\n' | '\r')).count() + 1;
    let lines = u32::try_from(lines).expect("a short text");
    for finding in &found.findings {
        assert!(finding.at.line <= lines, "{finding} of {lines} lines");
        assert!(!finding.message.is_empty() && !finding.code.is_empty(), "{finding:?}");
    }
    assert_eq!(found.has_errors(), found.findings.iter().any(|finding| finding.severity == Severity::Error));
    for placed in &found.objects {
        assert!(placed.at.line >= 1 && placed.at.line <= lines, "{:?}", placed.at);
        assert!(!placed.object.name().is_empty());
        let written = serde_json::to_string(&placed.object).expect("an object can be written");
        let again = parse::documents("again.json", &written);
        assert!(!again.has_errors(), "{written}: {:?}", again.findings);
        assert_eq!(again.objects.len(), 1, "{written}");
        assert!(again.objects.iter().all(|one| one.object == placed.object), "{written}");
    }
    !found.objects.is_empty() && !found.has_errors()
}
