//go:build unix

package embedded_test

import (
	"reflect"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

func newOf(ct driver.ColumnType) any { return reflect.New(ct.ScanType()).Interface() }

func deref(v any) any { return reflect.ValueOf(v).Elem().Interface() }
