package embedded

import "time"

// SetPatience shortens the time a client may stand still, for tests.
func (e *Engine) SetPatience(d time.Duration) { e.patience = d }
