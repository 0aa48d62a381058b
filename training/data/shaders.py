"""GLSL sources of the renderer: painted people, solids (rooms, furniture), shadow map and geometry buffer.

People carry their rest position as a varying, so clothes, hair and face are painted per *pixel* from landmarks of the
rest pose: eyes stay round however coarse the mesh is, and any body in SMPL's form can be dressed.
"""

from __future__ import annotations

__all__ = ["DEPTH_FRAGMENT", "GEOMETRY_FRAGMENT", "PERSON_FRAGMENT", "PERSON_VERTEX", "SOLID_FRAGMENT", "SOLID_VERTEX"]

_NOISE = """
float hash(vec3 p) { p = fract(p * 0.3183099 + 0.1); p *= 17.0; return fract(p.x * p.y * p.z * (p.x + p.y + p.z)); }
float noise(vec3 x) {
    vec3 i = floor(x), f = fract(x);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(mix(hash(i), hash(i + vec3(1,0,0)), f.x),
                   mix(hash(i + vec3(0,1,0)), hash(i + vec3(1,1,0)), f.x), f.y),
               mix(mix(hash(i + vec3(0,0,1)), hash(i + vec3(1,0,1)), f.x),
                   mix(hash(i + vec3(0,1,1)), hash(i + vec3(1,1,1)), f.x), f.y), f.z);
}
"""

_LIGHT = """
uniform vec3 light;            // towards the light, optical frame
uniform vec3 up;               // world up, optical frame
uniform vec3 light_colour;
uniform vec3 ambient;
uniform int has_shadow;
uniform sampler2DShadow shadow_map;
in vec4 v_shadow;

float lit() {
    if (has_shadow == 0) return 1.0;
    vec3 s = v_shadow.xyz / v_shadow.w * 0.5 + 0.5;
    if (any(lessThan(s, vec3(0.0))) || any(greaterThan(s, vec3(1.0)))) return 1.0;
    float sum = 0.0, texel = 1.0 / float(textureSize(shadow_map, 0).x);
    for (int i = 0; i < 4; i++)
        sum += texture(shadow_map, vec3(s.xy + texel * vec2((i & 1) * 2 - 1, (i & 2) - 1), s.z - 0.004));
    return sum * 0.25;
}

vec3 shade(vec3 base, vec3 n, vec3 position, float gloss) {
    vec3 view = normalize(-position);
    if (dot(n, view) < 0.0) n = -n;
    float d = max(dot(n, light), 0.0) * lit();
    float sky = 0.5 + 0.5 * dot(n, up);
    vec3 c = base * (ambient * (0.55 + 0.6 * sky) + light_colour * d);
    c += gloss * light_colour * d * pow(max(dot(n, normalize(light + view)), 0.0), 24.0);
    c *= 0.82 + 0.18 * abs(dot(n, view));
    return pow(clamp(c, 0.0, 1.0), vec3(1.0 / 2.2));
}
"""

PERSON_VERTEX = (
    "#version 330\n"
    + _NOISE
    + """
in vec3 in_position;           // posed, optical frame (m)
in vec3 in_normal;
in vec3 in_rest;               // rest pose, body frame (m)
uniform mat4 projection;
uniform mat4 shadow_matrix;
uniform vec3 eyes;             // point between the eyes, rest pose
uniform float face;            // distance between the eyes
uniform vec4 cloth_offset;     // metres the surface is pushed out: shirt, trousers, hair, shoes
uniform vec4 cuts;             // |x| where sleeves end, y of the waist, y where trousers end, y where shoes begin
uniform vec3 hairline;         // y at forehead, at ears, at the back
uniform vec3 neck;             // y of the collar, half width of the neck, z of the neck
uniform float seed;
out vec3 v_position; out vec3 v_normal; out vec3 v_rest; out vec4 v_shadow;
float hair_height(vec3 p) {
    float back = clamp((eyes.z - p.z) / (3.2 * face), 0.0, 1.0);
    return back < 0.5 ? mix(hairline.x, hairline.y, smoothstep(0.15, 0.5, back))
                      : mix(hairline.y, hairline.z, smoothstep(0.5, 0.72, back));
}
void main() {
    vec3 p = in_rest;
    float push = 0.0;
    if (p.y > neck.x && abs(p.x) < 2.5 * face) push = cloth_offset.z * smoothstep(0.0, 0.03, p.y - hair_height(p));
    else if (p.y < cuts.w) push = cloth_offset.w;
    else if (p.y < cuts.y) push = p.y > cuts.z ? cloth_offset.y * smoothstep(0.0, 0.06, cuts.y - p.y) : 0.0;
    else push = cloth_offset.x * smoothstep(0.0, 0.05, cuts.x - abs(p.x)) * smoothstep(0.0, 0.05, neck.x - p.y);
    push *= 0.5 + noise(p * 14.0 + seed);
    v_position = in_position + push * in_normal;
    v_normal = in_normal;
    v_rest = p;
    v_shadow = shadow_matrix * vec4(v_position, 1.0);
    gl_Position = projection * vec4(v_position, 1.0);
}
"""
)

PERSON_FRAGMENT = (
    "#version 330\n"
    + _NOISE
    + _LIGHT
    + """
in vec3 v_position; in vec3 v_normal; in vec3 v_rest;
uniform vec3 eyes; uniform float face; uniform vec4 cuts; uniform vec3 hairline; uniform vec3 neck; uniform float seed;
uniform vec3 skin, hair, shirt, shirt2, trousers, trousers2, shoes, iris;
uniform vec3 pattern;          // style of the shirt, of the trousers, beard 0..1
uniform float sole;            // y below which a shoe is sole
out vec4 colour;

float hair_height(vec3 p) {
    float back = clamp((eyes.z - p.z) / (3.2 * face), 0.0, 1.0);
    return back < 0.5 ? mix(hairline.x, hairline.y, smoothstep(0.15, 0.5, back))
                      : mix(hairline.y, hairline.z, smoothstep(0.5, 0.72, back));
}
vec3 cloth(vec3 a, vec3 b, float style, vec3 p) {
    float along = abs(p.x) > 0.24 ? p.x : p.y;            // stripes run round the sleeves too
    if (style > 4.5) return mix(a, b, smoothstep(0.45, 0.55, noise(p * 9.0 + seed)));             // blotches
    if (style > 3.5) return p.z > 0.0 && distance(p.xy, vec2(0.0, neck.x - 0.19)) < 0.085 ? b : a;     // print
    float across = abs(p.x) > 0.24 ? p.z : p.x;
    if (style > 2.5) return mix(a, b, 0.5 * step(0.5, fract(along * 11.0)) + 0.5 * step(0.5, fract(across * 11.0)));
    if (style > 1.5) return mix(a, b, step(0.62, fract(along * 13.0 + seed)));                     // stripes
    if (style > 0.5) return abs(p.x) < 0.012 && p.z > 0.0 ? b * 0.6 : (abs(p.x) > 0.24 ? b : a);   // two colours
    return a;
}
void main() {
    vec3 p = v_rest, n = normalize(v_normal), base = skin;
    float gloss = 0.06;
    float grain = noise(p * 60.0 + seed);
    float line = hair_height(p) + 0.012 * (noise(p * 70.0 + seed) - 0.5);
    bool headed = p.y > neck.x && abs(p.x) < 2.5 * face;
    if (headed) {
        vec2 q = (p.xy - eyes.xy) / face;
        float mirrored = abs(q.x) - 0.5;
        bool front = p.z > eyes.z - 1.2 * face;
        base *= 0.94 + 0.1 * grain;
        if (front) {
            vec2 cheek = vec2(mirrored, q.y + 0.62);
            base = mix(base, base * vec3(1.06, 0.86, 0.84), 0.6 * exp(-8.0 * dot(cheek, cheek)));
            base *= 1.0 - 0.22 * exp(-14.0 * (mirrored * mirrored + (q.y - 0.05) * (q.y - 0.05)));   // sockets
            float lips = length(vec2(q.x / 0.40, (q.y + 1.06) / 0.13));
            if (lips < 1.0)
                base = mix(skin * vec3(0.88, 0.52, 0.5), skin * 0.35, smoothstep(0.03, 0.0, abs(q.y + 1.06)));
            if (length(vec2((abs(q.x) - 0.12) / 0.07, (q.y + 0.66) / 0.05)) < 1.0) base *= 0.5;      // nostrils
            float brow = abs(q.y - 0.36 - 0.07 * cos(5.0 * mirrored)) / 0.075;
            if (abs(mirrored) < 0.34 && brow < 1.0) base = mix(base, hair * 0.6, 0.9);
            float e = length(vec2(mirrored / 0.27, q.y / 0.135));
            if (e < 1.0) {
                float r = length(vec2(mirrored, q.y));
                base = r < 0.055 ? vec3(0.01) : r < 0.125 ? iris : vec3(0.82, 0.80, 0.78);
                gloss = 0.3;
            } else if (e < 1.28 && q.y > -0.02) base = skin * 0.22;                                  // lashes
            if (pattern.z > 0.05 && q.y < -0.62 && lips > 1.15 && p.z > eyes.z - 1.5 * face)
                base = mix(base, hair, pattern.z * smoothstep(0.6, 0.9, -q.y + 0.5 * abs(q.x)) * (0.7 + 0.5 * grain));
        }
        if (p.y > line) {
            base = hair * (0.65 + 0.7 * noise(p * vec3(130.0, 25.0, 130.0)));
            gloss = 0.12;
        }
    } else {
        float v = p.z > neck.z ? 0.05 * pattern.x / 5.0 + 0.015 : -0.02;
        bool collar = length(vec2(p.x, 0.8 * (p.z - neck.z))) < neck.y * 1.15 && p.y > neck.x - 0.035 - v;
        if (p.y < cuts.w) { base = p.y < sole ? vec3(0.75) : shoes; gloss = 0.15; }
        else if (p.y < cuts.y && abs(p.x) < 0.45) {
            if (p.y > cuts.z) {
                base = cloth(trousers, trousers2, pattern.y, p) * (0.88 + 0.2 * grain);
                if (p.y > cuts.y - 0.035) base = trousers2 * 0.5;                                    // belt
                gloss = 0.02;
            }
        } else if (!collar && abs(p.x) < cuts.x) {
            base = cloth(shirt, shirt2, pattern.x, p) * (0.9 + 0.18 * grain);
            if (cuts.x - abs(p.x) < 0.012) base *= 0.75;                                             // cuff
            gloss = 0.02;
        }
        if (gloss < 0.05) {  // wrinkles
            vec3 bump = vec3(noise(p * 22.0 + seed), noise(p.yzx * 22.0 - seed), noise(p.zxy * 22.0)) - 0.5;
            n = normalize(n + 0.45 * bump);
        }
    }
    colour = vec4(shade(base, n, v_position, gloss), 1.0);
}
"""
)

SOLID_VERTEX = """#version 330
in vec3 in_position; in vec3 in_normal; in vec2 in_uv;
uniform mat4 projection; uniform mat4 view; uniform mat4 shadow_matrix;
out vec3 v_position; out vec3 v_normal; out vec2 v_uv; out vec4 v_shadow;
void main() {
    v_position = (view * vec4(in_position, 1.0)).xyz;
    v_normal = mat3(view) * in_normal;
    v_uv = in_uv;
    v_shadow = shadow_matrix * vec4(v_position, 1.0);
    gl_Position = projection * vec4(v_position, 1.0);
}
"""

SOLID_FRAGMENT = (
    "#version 330\n"
    + _NOISE
    + _LIGHT
    + """
in vec3 v_position; in vec3 v_normal; in vec2 v_uv;
uniform vec3 colour_a; uniform vec3 colour_b; uniform int style;
uniform float scale; uniform float seed; uniform float gloss;
uniform sampler2D picture;
out vec4 colour;
void main() {
    vec2 t = v_uv / scale;
    vec3 base = colour_a;
    if (style == 1)
        base = mix(colour_a, colour_b, 0.6 * noise(vec3(t * 3.0, seed)) + 0.4 * noise(vec3(t * 13.0, seed)));
    else if (style == 2) {                                                       // tiles with joints
        vec2 f = abs(fract(t) - 0.5);
        base = colour_a * (0.85 + 0.25 * hash(vec3(floor(t), seed)));
        base = max(f.x, f.y) > 0.485 ? colour_b * 0.8 : base;
    } else if (style == 3) {                                                     // planks
        float row = floor(t.y * 5.0), u = t.x + 0.37 * row;
        base = colour_a * (0.75 + 0.4 * hash(vec3(row, floor(u * 0.8), seed)))
             * (0.88 + 0.2 * noise(vec3(u * 4.0, t.y * 90.0, seed)));
        if (fract(t.y * 5.0) < 0.04 || fract(u * 0.8) < 0.006) base *= 0.55;
    } else if (style == 4) base = mod(floor(t.x) + floor(t.y), 2.0) < 0.5 ? colour_a : colour_b;
    else if (style == 5) base = pow(texture(picture, t).rgb, vec3(2.2));
    else if (style == 6) base = mix(colour_a, colour_b, clamp(v_uv.y / scale, 0.0, 1.0));
    else if (style == 7) { colour = vec4(texture(picture, t).rgb, 1.0); return; } // a flat picture, not lit
    base *= 0.95 + 0.1 * noise(vec3(v_uv * 40.0, seed));
    colour = vec4(shade(base, normalize(v_normal), v_position, gloss), 1.0);
}
"""
)

GEOMETRY_FRAGMENT = """#version 330
in vec3 v_position;
uniform float object_id;
out vec2 geometry;             // depth along the optical axis (m), identity of the object
void main() { geometry = vec2(v_position.z, object_id); }
"""

DEPTH_FRAGMENT = """#version 330
void main() { }
"""
