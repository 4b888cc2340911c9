package main

import (
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

const (
	width  = 20 * vg.Centimeter
	height = 11 * vg.Centimeter
)

// colours of systems by their place; those of Runnel are always the same.
var colours = []color.Color{
	color.RGBA{0x9a, 0xa5, 0xb1, 255}, color.RGBA{0x3b, 0x7d, 0xb5, 255}, color.RGBA{0xe0, 0x9f, 0x3e, 255}, color.RGBA{0x7b, 0x5e, 0xa7, 255},
	color.RGBA{0x5b, 0x9c, 0x6f, 255}, color.RGBA{0xb0, 0x6a, 0x5c, 255}, color.RGBA{0x54, 0x5f, 0x66, 255},
}

var own = map[string]color.Color{
	"runnel": color.RGBA{0xc8, 0x2a, 0x54, 255}, "runnel-sdk": color.RGBA{0xc8, 0x2a, 0x54, 255}, "runnel-session": color.RGBA{0xe3, 0x7d, 0x98, 255},
	"runnel-generated": color.RGBA{0xe3, 0x7d, 0x98, 255},
}

func colour(system string, place int) color.Color {
	if c := own[system]; c != nil {
		return c
	}
	return colours[place%len(colours)]
}

func newPlot(c *chart) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.Title.Padding = vg.Points(8)
	p.BackgroundColor = color.White
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(2)
	p.Legend.ThumbnailWidth = vg.Points(12)
	p.Y.Tick.Marker = ticks{plot.DefaultTicks{}}
	return p
}

// addBars draws a bar for each system in each group, with its value above.
func addBars(p *plot.Plot, logarithmic bool, systems, groups []string, values map[string]map[string]float64) error {
	least, most := math.Inf(1), 0.0
	for _, byGroup := range values {
		for _, v := range byGroup {
			if v > 0 {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	base := 0.0
	if logarithmic && most > 0 {
		base = math.Pow(10, math.Floor(math.Log10(least*0.7)))
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, ticks{plot.LogTicks{Prec: -1}}
		p.Y.Max = most * 4
	} else {
		p.Y.Max = max(most*1.25, 1e-9)
	}
	p.Y.Min = base
	for i, s := range systems {
		c := colour(s, i)
		var labels plotter.XYLabels
		for g, name := range groups {
			v, ok := values[s][name]
			if !ok || v <= base {
				continue
			}
			const share = 0.84 // of a group's width that bars take
			wide := share / float64(len(systems))
			x := float64(g) - share/2 + float64(i)*wide
			bar, err := plotter.NewPolygon(plotter.XYs{{X: x, Y: base}, {X: x + wide*0.92, Y: base}, {X: x + wide*0.92, Y: v}, {X: x, Y: v}})
			if err != nil {
				return err
			}
			bar.Color, bar.LineStyle.Width = c, 0
			p.Add(bar)
			labels.XYs = append(labels.XYs, plotter.XY{X: x + wide/2, Y: v})
			labels.Labels = append(labels.Labels, short(v))
		}
		text, err := plotter.NewLabels(labels)
		if err != nil {
			return err
		}
		for i := range text.TextStyle {
			text.TextStyle[i].XAlign, text.TextStyle[i].YAlign = draw.XCenter, draw.YBottom
			text.TextStyle[i].Font.Size = vg.Points(7)
		}
		text.Offset.Y = vg.Points(2)
		p.Add(text)
		p.Legend.Add(s, swatch{c})
	}
	p.NominalX(groups...)
	p.X.Min, p.X.Max = -0.5, float64(len(groups))-0.5+0.02
	return nil
}

// swatch is a system's colour in the legend.
type swatch struct{ color.Color }

// Thumbnail implements plot.Thumbnailer.
func (s swatch) Thumbnail(c *draw.Canvas) {
	c.FillPolygon(s.Color, []vg.Point{{X: c.Min.X, Y: c.Min.Y}, {X: c.Max.X, Y: c.Min.Y}, {X: c.Max.X, Y: c.Max.Y}, {X: c.Min.X, Y: c.Max.Y}})
}

// addLines draws a line for each system.
func addLines(p *plot.Plot, systems []string, lines map[string][][2]float64) error {
	p.Legend.Left = true
	most := 0.0
	for i, s := range systems {
		var points plotter.XYs
		for _, v := range lines[s] {
			points = append(points, plotter.XY{X: v[0], Y: v[1]})
			most = max(most, v[1])
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		c := colour(s, i)
		line.Color, line.Width = c, vg.Points(1.5)
		dots.Color, dots.Shape, dots.Radius = c, draw.CircleGlyph{}, vg.Points(2.5)
		p.Add(line, dots)
		p.Legend.Add(s, line, dots)
	}
	p.X.Min, p.Y.Min, p.Y.Max = 0, 0, max(most*1.15, 1e-9)
	p.X.Tick.Marker = ticks{plot.DefaultTicks{}}
	return nil
}

// ticks writes numbers as people do.
type ticks struct{ plot.Ticker }

// Ticks implements plot.Ticker.
func (t ticks) Ticks(least, most float64) []plot.Tick {
	list := t.Ticker.Ticks(least, most)
	for i := range list {
		if list[i].Label != "" {
			list[i].Label = short(list[i].Value)
		}
	}
	return list
}

// short writes a number with about three digits.
func short(v float64) string {
	for _, unit := range []struct {
		of   float64
		name string
	}{{1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= unit.of {
			return digits(v/unit.of) + unit.name
		}
	}
	return digits(v)
}

func digits(v float64) string {
	if math.Abs(v) >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
