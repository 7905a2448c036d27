// Package policy is segmentation policy as code: it loads the YAML language of
// docs/policy.md, checks it, compiles it to an immutable index, keeps several
// versions with the times they were in force, and judges flows.
//
// It is pure: it reads files through an fs.FS handed in, asks no clock, does no
// other I/O and holds no global state. A verdict depends on the policy versions
// and the flow alone, never on the order in which files were read or flows came.
//
// The way of a policy: [Load] (or [ParseSource]) gives a [Policy] or diagnostics,
// never both a policy and an error; [History.Add] compiles it to an [Index] in
// force from a moment on; [History.JudgeRecord] picks the version by the start of
// the flow and judges. [Index.Judge] judges one [Conversation] by one version.
//
// What a verdict means is decided in docs/policy.md. What severity a finding has
// and who is told is not this package's business.
package policy
