package dashboards

// Catalog lists the dashboards in the order in which people meet them, each with the file it is
// written to. Building them panics if a row of panels does not fill the grid.
func Catalog() []File {
	return []File{
		{"overview.json", overview()},
		{"exceptions.json", exceptions()},
		{"one-exception.json", oneException()},
		{"lateral-movement.json", lateralMovement()},
		{"segments.json", segments()},
		{"identity-blind-spots.json", identity()},
		{"audit-compliance.json", audit()},
		{"pipeline.json", pipeline()},
	}
}

// File is a dashboard and the name of its file.
type File struct {
	Name string
	*Dashboard
}
