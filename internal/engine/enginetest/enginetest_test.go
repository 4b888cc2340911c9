package enginetest

import "testing"

func TestModel(t *testing.T) { Run(t, modelFactory("")) }
